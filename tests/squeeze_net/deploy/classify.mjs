// Usage: node classify.mjs PROGRAM.wasm ARCHIVE.sqz RGB WIDTH HEIGHT... Prints {cut (base64), logits, probabilities} of
// each picture as a line of JSON.
import { readFileSync } from 'node:fs';

const [program, archive, ...words] = process.argv.slice(2);
const c = new WebAssembly.Instance(new WebAssembly.Module(readFileSync(program)), {}).exports;
const bytes = (at, n) => new Uint8Array(c.memory.buffer, at, n);
const word = (at) => new DataView(c.memory.buffer).getUint32(at, true);
const floats = (at, n) => [...new Float32Array(c.memory.buffer, at, n)];

function put(content) {
  const at = c.memory.buffer.byteLength;
  c.memory.grow(Math.ceil(content.length / 65536));
  bytes(at, content.length).set(content);
  return at;
}

function check(code) {
  if (!code) return;
  const text = bytes(c.sqz_message(code), 1000);
  throw new Error(Buffer.from(text.subarray(0, text.indexOf(0))).toString());
}

const raw = readFileSync(archive), packed = put(raw), out = put(new Uint8Array(8));
check(c.sqz_memory(packed, raw.length, out));
const need = word(out);
check(c.sqz_open(packed, raw.length, put(new Uint8Array(need)), need, out));
const net = word(out), n = c.sqz_n_class(net), side = c.sqz_crop(net);
const probabilities = put(new Uint8Array(4 * n)), cut = put(new Uint8Array(3 * side * side));
for (let i = 0; i < words.length; i += 3) {
  const pixels = put(readFileSync(words[i])), [width, height] = words.slice(i + 1).map(Number);
  check(c.sqz_cut(net, pixels, width, height, 3, cut));
  check(c.sqz_classify(net, pixels, width, height, 3, probabilities));
  console.log(JSON.stringify({
    cut: Buffer.from(bytes(cut, 3 * side * side)).toString('base64'),
    logits: floats(c.sqz_logits(net), n),
    probabilities: floats(probabilities, n),
  }));
}
