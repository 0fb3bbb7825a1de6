// The server's interface: requests with the key, its errors in words, its streams of events.

const KEY = "emu-key";
let key = storedKey();

function storedKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // a browser that stores nothing
  }
}

/** An answer that is an error, in the server's own words. */
export class Refusal extends Error {
  constructor(status, body, wait) {
    const told = body?.error ?? {};
    super(told.message || `The server answered ${status}.`);
    this.status = status;
    this.field = told.param ?? null;
    this.wait = wait; // seconds, where the server asks to wait
  }
}

/** No answer, or one that ended early. */
export class Unreachable extends Error {}

/** Send this key with every request, until the tab is closed. */
export function rememberKey(given) {
  key = given.replace(/[^\x20-\x7e]/g, "").trim(); // what no header can hold, such as the line end of a copied line
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // asked for again after a reload
  }
}

export const hasKey = () => key !== null;

/** Send a request to a path of this server; `Refusal` where it answers with an error, `Unreachable` where it does not answer. */
export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  const response = await reached(fetch(new URL(path, document.baseURI), { method, headers, body, signal }), signal);
  if (response.ok) return response;
  const words = await response.json().catch(() => null);
  throw new Refusal(response.status, words, waitOf(response));
}

/** What a promise of the network gives; a failure of the network as `Unreachable`. */
export async function reached(promise, signal) {
  try {
    return await promise;
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw new Unreachable("The server cannot be reached. Is it still running, and is the network up?", { cause: error });
  }
}

function waitOf(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  return Number.isFinite(seconds) && seconds > 0 ? Math.ceil(seconds) : response.status === 429 ? 1 : 0;
}

/** The data of each server-sent event of an answer, as JSON; it ends at `[DONE]` or with the answer. */
export async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reached(reader.read(), signal);
      if (done) return;
      const parts = (held + value).replaceAll("\r\n", "\n").split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (!lines.length) continue; // a comment that keeps the connection open
        const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Refusal(500, event, 0);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the server learns that nobody listens
  }
}

/** The model that is served, with what it was trained for. */
export async function servedModel(signal) {
  const answer = await ask("v1/models", { signal });
  const { data } = await reached(answer.json(), signal);
  const [model] = data;
  const about = model.emu ?? {};
  return {
    name: model.id,
    tasks: about.tasks ?? {},
    sizes: about.sizes ?? [],
    guidance: about.guidance_scale ?? null,
    prompts: about.prompts ?? [],
    question: about.question ?? "",
  };
}
