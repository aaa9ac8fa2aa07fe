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

/** Ask for the jobs of a project again and again, until the function that this gives is called. */
export const follow = (id, on) => {
  let timer, ended = false;
  const look = async () => {
    try {
      const found = await json(`api/projects/${id}/jobs`);
      if (!ended) await on.found(found);
    } catch {
      if (!ended && gone.hidden) return on.closed(); // it answers, but not with this project
    }
    if (!ended) timer = setTimeout(look, 250);
  };
  timer = setTimeout(look, 250);
  return () => { ended = true; clearTimeout(timer); };
};
