// The page of one session: makes its player and joins it to the links and choices around it.
"use strict";

(() => {
  const place = document.getElementById("player");
  if (place === null) return;
  const data = place.dataset;
  const status = document.getElementById("player-status");
  const told = (sentence) => {
    status.textContent = sentence;
  };
  const options = { fit: "width", controls: true, cursorMode: "steady", theme: "auto/asciinema" };

  if (data.live !== undefined) {
    const player = AsciinemaPlayer.create(Playback.live({ url: data.live, told }), place, { ...options, autoPlay: true });
    window.addEventListener("pagehide", () => player.dispose());
    return;
  }

  let part = null;
  const choice = (name) => document.getElementById(name);
  const idle = () => (choice("idle").value === "" ? Infinity : Number(choice("idle").value));
  const settings = {
    url: data.window,
    duration: Number(data.duration),
    startAt: Number(data.at),
    markers: JSON.parse(data.markers),
    speed: 1,
    idle: idle(),
    failed: told,
  };
  const player = AsciinemaPlayer.create(Playback.recorded(settings, (made) => (part = made)), place, options);
  choice("choices").hidden = false;
  choice("speed").value = "1";

  choice("speed").addEventListener("change", () => part.setSpeed(Number(choice("speed").value)));
  choice("idle").addEventListener("change", () => {
    settings.idle = idle();
  });

  // Links to a moment of this page move the player instead of loading the page again.
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
    const link = event.target.closest("a[data-moment]");
    if (link === null) return;
    event.preventDefault();
    history.replaceState(null, "", link.href);
    place.scrollIntoView({ block: "nearest" });
    void player.seek(Number(link.dataset.moment));
  });

  choice("here").addEventListener("click", () => {
    const address = new URL(location.href);
    address.searchParams.set("t", player.getCurrentTime().toFixed(1));
    history.replaceState(null, "", address);
    const copied = navigator.clipboard?.writeText(address.href) ?? Promise.reject(new Error("none"));
    copied.then(
      () => told("Copied a link to this moment."),
      () => told("The address bar now links to this moment."),
    );
  });

  // Names of shown cast positions, kept to a whole second.
  window.setInterval(() => {
    const now = player.getCurrentTime() ?? 0;
    const cursor = document.getElementById("cursor");
    if (cursor !== null && settings.duration > 0) {
      cursor.setAttribute("x", String((1000 * Math.min(now, settings.duration)) / settings.duration));
    }
  }, 500);

  window.addEventListener("pagehide", () => player.dispose());
})();
