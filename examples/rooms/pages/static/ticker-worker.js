// The timers of a hidden tab run once a second; those of a worker keep their pace.
const timers = new Map();
self.addEventListener("message", ({ data: { id, ms } }) => {
  clearInterval(timers.get(id));
  timers.delete(id);
  if (ms !== null) timers.set(id, setInterval(() => self.postMessage(id), ms));
});
