// Packs the package, installs it into fresh directories beside the oldest and the newest upstream
// that it supports, and runs the tests there: on what users get. Needs no network after `npm ci`.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const modules = join(root, 'node_modules');
const env = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^(OMAI|OPENAI)_/.test(name)),
);

function run(command, args, cwd, options = {}) {
  return execFileSync(command, args, { cwd, env, stdio: 'inherit', ...options });
}

/** Install the tarball beside an upstream, as a project of its own would have them. */
function install(directory, tarball, upstream) {
  writeFileSync(join(directory, 'package.json'), '{"private": true}');
  const packages = [tarball, `file:${join(modules, upstream)}`];
  run('npm', ['install', '--offline', '--install-links', '--loglevel=error', ...packages], directory);
  cpSync(join(root, 'test', 'unit'), join(directory, 'unit'), { recursive: true });
  const usage = readFileSync(join(root, 'test', 'types', 'usage.mts'), 'utf8');
  for (const ending of ['mts', 'cts']) writeFileSync(join(directory, `usage.${ending}`), usage);
}

function checkTypes(directory) {
  const options = ['--noEmit', '--strict', '--exactOptionalPropertyTypes', '--module', 'nodenext'];
  options.push('--target', 'es2022', '--lib', 'es2022,dom,dom.iterable,esnext.disposable', '--types', '');
  const tsc = join(modules, 'typescript', 'bin', 'tsc');
  run(process.execPath, [tsc, ...options, 'usage.mts', 'usage.cts'], directory);
}

const work = mkdtempSync(join(tmpdir(), 'omai-'));
try {
  const packed = run('npm', ['pack', '--json', '--loglevel=error', '--pack-destination', work], root, {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [, filename] = /"filename": "(.*)"/.exec(packed.toString());
  for (const upstream of ['openai-oldest', 'openai-newest']) {
    const { version } = JSON.parse(readFileSync(join(modules, upstream, 'package.json'), 'utf8'));
    console.log(`\n# on openai ${version}`);
    const directory = mkdtempSync(join(work, `${version}-`));
    install(directory, join(work, filename), upstream);
    checkTypes(directory);
    run(process.execPath, ['--test', '--test-reporter=spec', 'unit/'], directory);
  }
} catch (error) {
  if (error.status === undefined) throw error;
  process.exitCode = 1;
} finally {
  rmSync(work, { recursive: true, force: true });
}
