import { OpenAIError as OMAiError } from 'openai';

const PREFIX = 'omai-sk-';
const FORM = /^omai-sk-([0-9A-Za-z]{12}_[0-9A-Za-z]{43})_([0-9A-Za-z]{6})$/;
const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const CHECKSUM_LENGTH = 6;

/**
 * Return the key; throw an OMAiError, which does not show it, for an OMAi key that was not copied
 * whole or has a typing error. Keys of other forms are the server's to judge.
 */
export function checkedKey(given: string): string {
  const key = given.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    throw new OMAiError('The API key is empty, or has characters that no key has.');
  }
  if (!key.startsWith(PREFIX)) return key;
  const [, body, checksum] = FORM.exec(key) ?? [];
  if (body === undefined || checksum !== checksumOf(body)) {
    throw new OMAiError(
      'The API key is malformed: it begins as an OMAi key does, but its checksum does not hold. ' +
        'Check that it was copied whole, without spaces or line breaks.',
    );
  }
  return key;
}

/** The CRC-32 in base 62, its 33rd bit set. */
function checksumOf(body: string): string {
  let value = crc32(body) + 2 ** 32;
  let digits = '';
  while (digits.length < CHECKSUM_LENGTH) {
    digits = ALPHABET.charAt(value % ALPHABET.length) + digits;
    value = Math.floor(value / ALPHABET.length);
  }
  return digits;
}

function crc32(ascii: string): number {
  let crc = ~0;
  for (let index = 0; index < ascii.length; index++) {
    crc ^= ascii.charCodeAt(index);
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
