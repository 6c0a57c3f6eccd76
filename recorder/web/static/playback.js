// What feeds the player: drivers of our own, since the player's own ones load a recording whole.
//
// Recorded drives what the server cuts into windows (cast lines and, last, a line {"next": ...} that says where the
// next window starts). A seek loads the window around its moment, with what led up to it, and playing loads on. Once a
// recording is small enough its windows start at its beginning and the screen is exact; in the middle of a large one it
// is what the lead-in has drawn. Live follows an event stream whose messages are cast lines.
//
// Recorded output is hostile input: it goes to the player's terminal as text and nowhere else, and sizes are bounded.
"use strict";

const Playback = (() => {
  const MOST_COLS = 1000; // cells; a hostile header must not make the terminal allocate more
  const MOST_ROWS = 500;
  const AHEAD = 8; // seconds of playing time left in the buffer at which the next window is asked for
  const KEPT = 60000; // events kept behind the playing position before they are let go

  // Bytes that were not UTF-8 stand in a cast as U+10FE80..U+10FEFF.
  const readable = (text) => text.replace(/[\u{10FE80}-\u{10FEFF}]/gu, "\uFFFD");

  const bounded = (value, most, otherwise) =>
    Number.isInteger(value) && value > 0 ? Math.min(value, most) : otherwise;

  const sizeOf = (cols, rows) => ({ cols: bounded(cols, MOST_COLS, 80), rows: bounded(rows, MOST_ROWS, 24) });

  const parsed = (line) => {
    try {
      return JSON.parse(line);
    } catch {
      return null;
    }
  };

  // What is an event, as the recorder has it (event_of in k8sproxy/protocol/asciicast.py).
  const MOST_TIME = 1e6; // seconds
  const isEvent = (value) =>
    Array.isArray(value) &&
    value.length === 3 &&
    Number.isFinite(value[0]) &&
    value[0] >= 0 &&
    value[0] <= MOST_TIME &&
    /^[A-Za-z]$/.test(value[1]) &&
    typeof value[1] === "string" &&
    typeof value[2] === "string";

  // The size that a resize names; null where it names none, and then the terminal stays as it is.
  const resized = (text) => {
    const match = /^([0-9]{1,15})x([0-9]{1,15})$/.exec(text);
    if (match === null || Number(match[1]) === 0 || Number(match[2]) === 0) return null;
    return sizeOf(Number(match[1]), Number(match[2]));
  };

  // One event of a cast to the player; what is no output and no resize is not shown.
  const show = (dispatch, [, code, data]) => {
    if (code === "o" || code === "e") dispatch("output", readable(data));
    const size = code === "r" ? resized(data) : null;
    if (size !== null) dispatch("resize", size);
  };

  const timing = (time, rate) => ({ time, rate, sampledAt: performance.timeOrigin + performance.now() });

  class Recorded {
    // settings: url, duration (seconds), startAt (seconds), markers ([seconds, label]), speed, idle (seconds or
    // Infinity), failed(sentence).
    constructor(settings, { dispatch }) {
      this.settings = settings;
      this.dispatch = dispatch;
      this.events = [];
      this.index = 0;
      this.next = null; // where the next window starts; null: there is none
      this.position = 0; // seconds, where the clock stood at `since`
      this.since = 0;
      this.shown = 0; // seconds: what is on the screen
      this.playing = false;
      this.timer = undefined;
      this.generation = 0;
      this.loading = null;
      this.ended = false;
    }

    now() {
      if (!this.playing) return this.position;
      return this.position + ((performance.now() - this.since) / 1000) * this.settings.speed;
    }

    async init() {
      this.dispatch("metadata", { duration: this.settings.duration, markers: this.settings.markers });
      await this.moveTo(this.settings.startAt);
      if (this.settings.startAt > 0) this.dispatch("play"); // takes the start button off the screen that was asked for
    }

    async fetchWindow(from, lead) {
      const query = new URLSearchParams(lead ? { at: String(from) } : { from });
      const response = await fetch(`${this.settings.url}?${query}`, { credentials: "same-origin" });
      if (!response.ok) throw new Error(`the recorder answered ${response.status}`);
      const window = { header: {}, events: [], next: null };
      for (const line of (await response.text()).split("\n")) {
        const value = parsed(line);
        if (isEvent(value)) window.events.push(value);
        else if (value !== null && typeof value === "object" && "next" in value) window.next = value.next;
        else if (value !== null && typeof value === "object" && !Array.isArray(value)) window.header = value;
      }
      return window;
    }

    // Loads around a moment, clears the screen and draws what led up to it.
    async moveTo(time) {
      const generation = ++this.generation;
      clearTimeout(this.timer);
      this.loading = null;
      let waited = false;
      const slow = setTimeout(() => {
        waited = true;
        this.dispatch("loading");
      }, 400);
      try {
        const window = await this.fetchWindow(time, true);
        if (generation !== this.generation) return false;
        this.events = window.events;
        this.next = window.next;
        this.index = 0;
        this.dispatch("reset", { size: sizeOf(window.header.width, window.header.height), init: "" });
        this.setClock(time);
        this.draw(time);
        while (this.index === this.events.length && this.next !== null) {
          await this.loadOn();
          if (generation !== this.generation) return false;
          this.draw(time);
        }
        this.ended = this.index === this.events.length && this.next === null;
        if (waited) this.dispatch("play"); // takes the sign of waiting off the screen
      } catch (error) {
        if (generation === this.generation) this.fail(error);
        return false;
      } finally {
        clearTimeout(slow);
      }
      return true;
    }

    // Draws what is due at a time; all output of one moment goes to the terminal in one piece.
    draw(time) {
      let output = "";
      while (this.index < this.events.length && this.events[this.index][0] <= time) {
        const event = this.events[this.index++];
        if (event[1] === "o" || event[1] === "e") {
          output += readable(event[2]);
        } else if (event[1] === "r") {
          if (output !== "") this.dispatch("output", output);
          output = "";
          show(this.dispatch, event);
        }
        this.shown = event[0];
      }
      if (output !== "") this.dispatch("output", output);
      if (this.index > KEPT) {
        this.events.splice(0, this.index);
        this.index = 0;
      }
    }

    loadOn() {
      if (this.next === null) return Promise.resolve();
      if (this.loading === null) {
        const generation = this.generation;
        this.loading = this.fetchWindow(this.next, false).then(
          (window) => {
            if (generation !== this.generation) return;
            this.loading = null;
            for (const event of window.events) this.events.push(event);
            this.next = window.next;
          },
          (error) => {
            if (generation !== this.generation) return;
            this.loading = null; // so that playing on asks again
            this.fail(error);
          },
        );
      }
      return this.loading;
    }

    setClock(time) {
      this.position = time;
      this.since = performance.now();
      this.dispatch("timing", timing(time, this.playing ? this.settings.speed : 0));
    }

    fail(error) {
      clearTimeout(this.timer);
      this.playing = false;
      this.dispatch("error", { name: "Error", message: String(error.message) });
      this.settings.failed(`This recording can't be played on: ${error.message}.`);
    }

    async play() {
      if (this.playing) return true;
      this.dispatch("play");
      if ((this.ended || this.position >= this.settings.duration) && !(await this.moveTo(0))) return false;
      this.playing = true;
      this.ended = false;
      this.setClock(this.position);
      this.dispatch("playing");
      this.turn();
      return true;
    }

    turn() {
      if (!this.playing) return;
      this.draw(this.now());
      const left = this.events.length > this.index ? this.events[this.events.length - 1][0] - this.now() : 0;
      if (this.next !== null && left < AHEAD * this.settings.speed) void this.loadOn();
      if (this.index === this.events.length) {
        if (this.next === null) {
          this.finish();
        } else {
          const generation = this.generation;
          void this.loadOn().then(() => {
            if (generation === this.generation) this.turn();
          });
        }
        return;
      }
      let wait = this.events[this.index][0] - this.now();
      if (wait > this.settings.idle) {
        this.setClock(this.events[this.index][0] - this.settings.idle);
        wait = this.settings.idle;
      }
      // Half a second at most, so that a changed speed or idle limit is heeded and the next window is asked for in time.
      this.timer = setTimeout(() => this.turn(), Math.min(500, Math.max(16, (wait * 1000) / this.settings.speed)));
    }

    finish() {
      this.playing = false;
      this.ended = true;
      this.setClock(this.settings.duration);
      this.dispatch("ended", {});
    }

    pause() {
      if (!this.playing) return true;
      clearTimeout(this.timer);
      const time = this.now();
      this.playing = false;
      this.setClock(time);
      this.dispatch("pause");
      return true;
    }

    setSpeed(speed) {
      const time = this.now();
      this.settings.speed = speed;
      this.setClock(time);
    }

    target(where) {
      const { duration, markers } = this.settings;
      const now = this.now();
      if (typeof where === "number") return where;
      if (where === "<<") return now - 5;
      if (where === ">>") return now + 5;
      if (where === "<<<") return now - 0.1 * duration;
      if (where === ">>>") return now + 0.1 * duration;
      if (typeof where === "string") return (parseFloat(where) / 100) * duration;
      if (where.marker === "prev") return Math.max(0, ...markers.map((m) => m[0]).filter((t) => t < now - 1));
      if (where.marker === "next") return Math.min(duration, ...markers.map((m) => m[0]).filter((t) => t > now + 0.001));
      return markers[where.marker]?.[0] ?? now;
    }

    async seek(where) {
      const time = Math.min(Math.max(this.target(where) || 0, 0), this.settings.duration);
      const playing = this.playing;
      this.playing = false;
      clearTimeout(this.timer);
      // A step forward within what is loaded draws on; everything else loads anew, for a terminal has no way back.
      const last = this.events.length ? this.events[this.events.length - 1][0] : 0;
      if (time >= this.shown && (time <= last || this.next === null) && this.events.length > 0) {
        ++this.generation;
        this.loading = null;
        this.setClock(time);
        this.draw(time);
        this.ended = this.index === this.events.length && this.next === null;
      } else if (!(await this.moveTo(time))) {
        return false;
      }
      this.dispatch("play");
      this.dispatch("seeked");
      if (playing && !this.ended) {
        this.playing = true;
        this.setClock(time);
        this.dispatch("playing");
        this.turn();
      } else if (playing) {
        this.dispatch("pause");
      }
      return true;
    }

    async step(n = 1) {
      if (this.playing) return;
      if (n > 0 && this.index < this.events.length) await this.seek(this.events[this.index][0]);
      else if (n < 0 && this.index > 1) await this.seek(this.events[this.index - 2][0]);
    }

    stop() {
      ++this.generation;
      this.playing = false;
      clearTimeout(this.timer);
    }

    getTiming() {
      return timing(this.now(), this.playing ? this.settings.speed : 0);
    }

    getDuration() {
      return this.settings.duration;
    }
  }

  class Live {
    // settings: url, told(sentence, over).
    constructor(settings, { dispatch }) {
      this.settings = settings;
      this.dispatch = dispatch;
      this.source = null;
      this.time = 0;
      this.since = 0;
      this.rate = 0;
    }

    clock(time, rate) {
      this.time = time;
      this.since = performance.now();
      this.rate = rate;
      this.dispatch("timing", timing(time, rate));
    }

    play() {
      if (this.source !== null) return true;
      this.dispatch("play");
      this.source = new EventSource(this.settings.url);
      this.source.addEventListener("message", (message) => this.take(message.data));
      this.source.addEventListener("over", () => {
        this.source.close();
        this.clock(this.time, 0);
        this.dispatch("ended", {}); // a message would stand in place of the last screen
        this.settings.told("The session has ended. Reload this page to replay it.", true);
      });
      this.source.addEventListener("withdrawn", () => {
        this.source.close();
        this.refused();
      });
      this.source.addEventListener("error", () => {
        this.clock(this.time, 0);
        if (this.source.readyState === EventSource.CLOSED) {
          this.refused();
        } else {
          this.dispatch("loading");
          this.settings.told("The connection was lost; trying again.", false);
        }
      });
      return true;
    }

    // What was seen before the grant was taken back goes from the screen too.
    refused() {
      this.clock(this.time, 0);
      this.dispatch("output", "\u001bc");
      this.dispatch("error", { name: "Error", message: "refused" });
      this.settings.told("You may no longer watch this session.", true);
    }

    take(data) {
      for (const line of data.split("\n")) {
        const value = parsed(line);
        if (isEvent(value)) {
          this.time = value[0];
          show(this.dispatch, value);
        } else if (value !== null && typeof value === "object" && !Array.isArray(value)) {
          this.dispatch("reset", { size: sizeOf(value.width, value.height), init: "" });
          this.dispatch("playing");
          this.settings.told("Watching live.", false);
        }
      }
      this.clock(this.time, 1);
    }

    stop() {
      if (this.source !== null) this.source.close();
    }

    getTiming() {
      const time = this.time + (this.rate ? (performance.now() - this.since) / 1000 : 0);
      return timing(time, this.rate);
    }
  }

  // The player asks what a driver can do by which methods it has, so they are handed over as plain functions.
  const driver = (part, names) => Object.fromEntries(names.map((name) => [name, (...args) => part[name](...args)]));

  return {
    recorded(settings, made) {
      return (callbacks) => {
        const part = new Recorded(settings, callbacks);
        made(part);
        return driver(part, ["init", "play", "pause", "seek", "step", "stop", "getTiming", "getDuration"]);
      };
    },
    live(settings) {
      return (callbacks) => driver(new Live(settings, callbacks), ["play", "stop", "getTiming"]);
    },
  };
})();
