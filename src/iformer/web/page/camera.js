// The camera of this device.

const REASONS = {
  NotAllowedError: "The camera is blocked for this page. Allow it in the browser's settings of this site, or pick a photograph.",
  NotFoundError: "This device has no camera. Pick a photograph instead.",
  NotReadableError: "The camera is used by another program. Close it, or pick a photograph.",
};

// Starts the camera, the one at the back if there is one. Throws an error that says in words what is missing.
export async function openCamera(video) {
  const camera = new Camera(video);
  await camera.start();
  return camera;
}

class Camera {
  constructor(video) {
    this.video = video;
    this.facing = "environment";
    this.stream = null;
    this.canTurn = false;
  }

  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("The camera needs https or localhost. Pick a photograph instead.");
    }
    try {
      const video = { facingMode: this.facing, width: { ideal: 1280 }, height: { ideal: 720 } };
      this.stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The camera does not start: ${error.message}`);
    }
    this.video.srcObject = this.stream;
    await this.video.play();
    const devices = await navigator.mediaDevices.enumerateDevices();
    this.canTurn = devices.filter(({ kind }) => kind === "videoinput").length > 1;
  }

  async turn() {
    this.facing = this.facing === "environment" ? "user" : "environment";
    this.close();
    await this.start();
  }

  // The next frame.
  async frame() {
    await new Promise((resolve) => {
      if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(resolve);
      else requestAnimationFrame(resolve);
      setTimeout(resolve, 500); // a stopped stream gives no frames
    });
    return createImageBitmap(this.video);
  }

  close() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
  }
}
