"""Code for the CPU at hand, built with its C++ compiler where there is one."""
