// The server's interface. Paths are relative: the page may lie below a path of a reverse proxy.

export class Refusal extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  let reason = `${response.status} ${response.statusText}`;
  try {
    reason = (await response.json()).detail ?? reason;
  } catch {
    // Not the server's own answer, but that of a proxy.
  }
  throw new Refusal(response.status, reason);
}

export async function readModel() {
  return (await ask("v1/model")).json();
}

function query(thresholds, format) {
  const chosen = Object.entries({ ...thresholds, format }).filter(([, value]) => value !== null);
  return new URLSearchParams(chosen).toString();
}

function send(file, thresholds, format, signal) {
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  const options = { method: "POST", body: file, headers: { "Content-Type": type }, signal };
  return ask(`v1/segment?${query(thresholds, format)}`, options);
}

// The result of a photo in a format. The network runs only if the server does not keep the result `id` (any more).
export async function result(file, id, thresholds, format, signal) {
  if (id !== null) {
    try {
      return await ask(`v1/results/${encodeURIComponent(id)}?${query(thresholds, format)}`, { signal });
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  return send(file, thresholds, format, signal);
}
