/**
 * JSON laid out over lines, from its text: nothing is parsed into values, so that no number or order changes.
 *
 * Pure. `laidOut(text)` gives pieces [kind, text] (kind: key, text, number, word, sign), or null for what is no JSON.
 */
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[{}[\],:]|\s+/y;
const KINDS = { "{": "sign", "[": "sign", "}": "sign", "]": "sign", ",": "sign", ":": "sign" };

export function laidOut(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  const tokens = [];
  TOKEN.lastIndex = 0;
  for (let found = TOKEN.exec(text); found; found = TOKEN.exec(text)) {
    if (found[0].trim()) tokens.push(found[0]);
    if (TOKEN.lastIndex === text.length) break;
  }
  const pieces = [];
  let depth = 0;
  const line = () => pieces.push(["sign", `\n${"  ".repeat(depth)}`]);
  for (const [index, token] of tokens.entries()) {
    const next = tokens[index + 1];
    if (token === "}" || token === "]") {
      depth -= 1;
      if (!"{[".includes(tokens[index - 1])) line();
    }
    pieces.push([kindOf(token, next), token === ":" ? ": " : token]);
    if (token === "{" || token === "[") {
      depth += 1;
      if (!"}]".includes(next)) line();
    } else if (token === ",") {
      line();
    }
  }
  return pieces;
}

function kindOf(token, next) {
  if (token[0] === '"') return next === ":" ? "key" : "text";
  return KINDS[token] ?? (/^[-\d]/.test(token) ? "number" : "word");
}
