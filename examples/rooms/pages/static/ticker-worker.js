// The timers of a hidden tab run once a second; those of a worker keep their pace.
let timer = 0;
self.addEventListener("message", ({ data: ms }) => {
  clearInterval(timer);
  timer = setInterval(() => self.postMessage(null), ms);
});
