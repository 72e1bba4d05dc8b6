// JavaScript's JSON.parse: each line of hexadecimal digits as it reads it; numbers by the bits of their doubles.
import { createInterface } from "node:readline";

const bits = new DataView(new ArrayBuffer(8));

function form(value) {
  if (typeof value === "number") {
    bits.setFloat64(0, value);
    return { double: bits.getBigUint64(0).toString(16) };
  }
  if (Array.isArray(value)) return value.map(form);
  if (value !== null && typeof value === "object") {
    return { object: Object.entries(value).map(([key, item]) => [key, form(item)]) };
  }
  return value;
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = { read: form(JSON.parse(Buffer.from(line, "hex").toString("utf8"))) };
  } catch (error) {
    answer = { refused: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
