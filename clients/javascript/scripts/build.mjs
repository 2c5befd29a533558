// Compiles src/ twice, as ESM and as CommonJS, each with its declarations, into dist/.
import { execFileSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const tsc = fileURLToPath(new URL('../node_modules/typescript/bin/tsc', import.meta.url));

rmSync(`${root}dist`, { recursive: true, force: true });
for (const project of ['tsconfig.json', 'tsconfig.cjs.json']) {
  execFileSync(process.execPath, [tsc, '--project', `${root}${project}`], { stdio: 'inherit' });
}
writeFileSync(`${root}dist/cjs/package.json`, '{"type": "commonjs"}\n');
