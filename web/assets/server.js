// The server's REST side: keys, JSON, uploads with progress.

/** The server, whatever path a proxy gave it. */
export const base = new URL("../", import.meta.url);
const KEPT = "open-speech-key";

/** A request that failed, with what the server said. */
export class Problem extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The key of this tab, if it was asked for. */
export function key() {
  return sessionStorage.getItem(KEPT);
}

let asking = null;

/** Ask for the key, once for all who need it. Answers whether one was given. */
export function askKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.querySelector("#key");
    const input = document.querySelector("#key-input");
    input.value = "";
    dialog.returnValue = "cancel";
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "ok" ? input.value.trim() : "";
        input.value = "";
        if (given) sessionStorage.setItem(KEPT, given);
        else sessionStorage.removeItem(KEPT);
        asking = null;
        resolve(Boolean(given));
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

/** A response that is well. A refused key is asked for, then the request is made again. Throws Problem. */
export async function request(path, options = {}) {
  for (;;) {
    const used = key();
    let response;
    try {
      response = await fetch(new URL(path, base), { ...options, headers: { ...options.headers, ...authorization() } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer.", { code: "unreachable" });
    }
    if (response.ok) return response;
    const problem = await problemOf(response.status, await response.text(), response.headers.get("retry-after"));
    if (response.status !== 401) throw problem;
    if (key() !== used) continue; // another request has asked meanwhile
    if (!(await askKey())) throw problem;
  }
}

/** The JSON of a response. */
export async function json(path, options) {
  return (await request(path, options)).json();
}

/** The lines of a streamed answer, each parsed. */
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
  }
  if (rest.trim()) yield JSON.parse(rest);
}

/**
 * Post a form; `onSent(fraction)` while it goes up, `onEvent(object)` for each server-sent event of the answer.
 *
 * XMLHttpRequest, because `fetch` does not tell how much of a body has been sent.
 */
export async function upload(path, form, { onSent, onEvent, signal }) {
  for (;;) {
    const used = key();
    try {
      return await post(path, form, { onSent, onEvent, signal });
    } catch (error) {
      if (error.status !== 401) throw error;
      if (key() === used && !(await askKey())) throw error;
    }
  }
}

function post(path, form, { onSent, onEvent, signal }) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    let read = 0;
    const take = () => {
      if (xhr.status !== 200) return;
      for (;;) {
        const end = xhr.responseText.indexOf("\n\n", read);
        if (end < 0) return;
        const frame = xhr.responseText.slice(read, end);
        read = end + 2;
        const data = frame.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) onEvent(JSON.parse(data.join("\n")));
      }
    };
    xhr.open("POST", new URL(path, base));
    for (const [name, value] of Object.entries(authorization())) xhr.setRequestHeader(name, value);
    xhr.upload.onprogress = ({ loaded, total }) => onSent(total ? loaded / total : 0);
    xhr.upload.onload = () => onSent(1);
    xhr.onprogress = take;
    xhr.onload = () => {
      if (xhr.status === 200) {
        take();
        resolve();
      } else {
        problemOf(xhr.status, xhr.responseText, xhr.getResponseHeader("retry-after")).then(reject);
      }
    };
    xhr.onerror = () => reject(new Problem("The connection to the server was lost.", { code: "lost" }));
    xhr.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal?.addEventListener("abort", () => xhr.abort(), { once: true });
    xhr.send(form);
  });
}

function authorization() {
  return key() ? { authorization: `Bearer ${key()}` } : {};
}

async function problemOf(status, text, retryAfter) {
  let said = null;
  try {
    said = JSON.parse(text).error;
  } catch {
    // a proxy's page, perhaps
  }
  return new Problem(said?.message ?? `The server answered with status ${status}.`, {
    status,
    code: said?.code,
    retryAfter: retryAfter ? Number(retryAfter) : null,
  });
}
