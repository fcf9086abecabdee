/* A served page asks every few seconds whether the run has changed, and then reloads. */
function watch() {
  const badge = byId("live");
  badge.hidden = false;
  badge.textContent = `watching the run: ${trials.length} trials so far`;
  let stamp = null;
  setInterval(async () => {
    try {
      const now = await (await fetch("stamp", { cache: "no-store" })).text();
      if (stamp !== null && now !== stamp) location.reload();
      stamp = now;
    } catch {
      badge.textContent = "the server has ended: this is the last it showed";
    }
  }, 2000);
}
watch();
