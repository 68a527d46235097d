const ID = /^[A-Za-z0-9_-]{22}$/;

const problem = document.getElementById("problem");
const code = document.getElementById("code");

document.getElementById("make").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter;
  button.disabled = true;
  problem.textContent = "";
  try {
    location.assign(await makeRoom());
  } catch (error) {
    problem.textContent = error.message;
    button.disabled = false;
    button.focus();
  }
});

// After "back", the page may be as it was left.
addEventListener("pageshow", () => (document.querySelector("#make button").disabled = false));

document.getElementById("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = roomIn(code.value.trim());
  code.setAttribute("aria-invalid", String(!id));
  problem.textContent = id ? "" : "This is not the link or the code of a room. A code has 22 characters.";
  if (id) location.assign(`/room/${id}`);
  else code.focus();
});

/** The path of a new room. */
async function makeRoom() {
  let response;
  try {
    response = await fetch("/api/rooms", { method: "POST" });
  } catch {
    throw new Error("The server does not respond. Check your connection and try again.");
  }
  if (response.status === 429) {
    const seconds = Number(response.headers.get("Retry-After")) || 60;
    throw new Error(`There were many new rooms from your address. Try again in ${seconds} seconds.`);
  }
  if (!response.ok) throw new Error("The server did not make a room. Try again later.");
  return (await response.json()).url;
}

/** The id in a link or a code, or null. */
function roomIn(text) {
  const last = text.split(/[?#]/)[0].replace(/\/+$/, "").split("/").at(-1);
  return ID.test(last) ? last : null;
}
