// Reads a stream once from each base URL. Arguments: the client's folder, what to ask, the URLs.
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, ask, ...baseURLs] = process.argv.slice(2);
const require = createRequire(path.join(path.resolve(folder), 'package.json'));
const { default: OpenAI } = await import(pathToFileURL(require.resolve('openai')));
const { api, body } = JSON.parse(ask);

const read = [];
for (const baseURL of baseURLs) {
  const client = new OpenAI({ baseURL, maxRetries: 0 });
  const create = { chat: client.chat.completions, responses: client.responses }[api];
  const events = [];
  for await (const event of await create.create(body)) events.push(event);
  read.push(events);
}
process.stdout.write(JSON.stringify(read));
