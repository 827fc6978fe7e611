// The metadata of an ONNX file, which ONNX Runtime's sessions do not show to JavaScript.

/**
 * `metadata_props` of a model: field 14 of ModelProto, pairs of key (1) and value (2). All other fields are skipped unread.
 * @param {Uint8Array} bytes
 * @returns {Record<string, string>}
 */
export function modelMetadata(bytes) {
  /** @type {Record<string, string>} */
  const found = {};
  const text = new TextDecoder();
  for (const [field, message] of fields(bytes)) {
    if (field !== 14) continue;
    const entry = new Map(fields(message));
    found[text.decode(entry.get(1))] = text.decode(entry.get(2));
  }
  return found;
}

/**
 * The fields of a protobuf message that have a length.
 * @param {Uint8Array} bytes
 * @returns {Generator<[number, Uint8Array]>}
 */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; at < bytes.length; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw new Error("not an ONNX file: it ends within a field");
  };
  while (at < bytes.length) {
    const key = varint();
    const [field, wire] = [Math.floor(key / 8), key % 8];
    if (wire === 0) varint();
    else if (wire === 1) at += 8;
    else if (wire === 5) at += 4;
    else if (wire === 2) {
      const length = varint();
      if (length > bytes.length - at) throw new Error("not an ONNX file: it ends within a field");
      yield [field, bytes.subarray(at, (at += length))];
    } else throw new Error(`not an ONNX file: a field of kind ${wire}`);
  }
}
