// A browser starts no Worker for a page that was opened from a folder. There, the search runs in a frame instead.
if (location.protocol === "file:") {
  class FrameWorker extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inner = (this.inner = frame.contentWindow)
      const load = address =>
        new Promise(done => {
          const script = inner.document.createElement("script")
          script.src = new URL(address, document.baseURI).href
          script.onload = done
          inner.document.head.append(script)
        })
      inner.importScripts = (...addresses) => addresses.reduce((before, a) => before.then(() => load(a)), Promise.resolve())
      inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.loaded = load(url)
    }

    postMessage(data) {
      this.loaded.then(() => this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data })))
    }
  }
  window.IFrameWorker = window.Worker = FrameWorker
}
