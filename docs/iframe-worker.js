/* Pages that are opened from the disk may start no worker, in which the theme searches. Here it runs in a frame instead; on a server
   nothing is changed. MkDocs' plugin `offline` writes the index as a script for such pages. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = (...more) => Promise.all(more.map((one) => this.load(inside, one)));
      this.inside = inside;
      this.loaded = this.load(inside, url);
    }

    load(inside, url) {
      return new Promise((resolve) => {
        const script = inside.document.createElement("script");
        script.src = url;
        script.onload = resolve;
        inside.document.body.append(script);
      });
    }

    postMessage(data) {
      this.loaded.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
