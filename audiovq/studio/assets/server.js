// Requests to the studio's server; errors are sentences for the user.
const gone = document.getElementById("lost");

export const request = async (path, { method = "GET", body } = {}) => {
  const headers = body ? { "Content-Type": "application/json" } : {};
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    gone.hidden = true;
  } catch {
    gone.hidden = false;
    throw new Error("The studio does not answer.");
  }
  if (response.status === 401) location.href = "login";
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Error(error ?? `The studio answered with error ${response.status}.`);
};
export const json = async (path, options) => (await request(path, options)).json();

/** Ask until the server answers. */
export const patiently = async (path) => {
  for (;;) {
    try {
      const answer = await json(path);
      if (!answer.loading) return answer;
    } catch (error) {
      if (gone.hidden) throw error;
    }
    await new Promise((done) => setTimeout(done, 400));
  }
};

/** Send a file; `progress` gets the share that was sent. */
export const send = (path, file, progress) =>
  new Promise((done, fail) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", path);
    sending.setRequestHeader("Content-Type", "application/octet-stream");
    sending.responseType = "json";
    sending.upload.onprogress = (event) => progress(event.loaded / (event.total || 1));
    sending.onerror = () => fail(new Error(`${file.name}: the connection broke off while it was sent.`));
    sending.onload = () => sending.status < 300 ? done(sending.response)
      : fail(new Error(sending.response?.error ?? `The studio answered with error ${sending.status}.`));
    sending.send(file);
  });

/** The events of a project: its state and its jobs, until `close`. The browser connects again by itself. */
export const listen = (id, on) => {
  const events = new EventSource(`api/projects/${id}/events`);
  events.addEventListener("project", (event) => on.project(JSON.parse(event.data)));
  events.addEventListener("job", (event) => on.job(JSON.parse(event.data)));
  let retry;
  events.onopen = () => {
    if (!gone.hidden) on.back();
    gone.hidden = true;
  };
  events.onerror = () => {
    gone.hidden = false;
    if (events.readyState === EventSource.CLOSED) retry = setTimeout(on.closed, 2000);
  };
  return () => { clearTimeout(retry); events.close(); };
};
