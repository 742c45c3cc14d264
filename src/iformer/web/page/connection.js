// Requests to the server of this page. A static host needs no session; `iformer` hands one out for the address's token.

const KEY = "iformer-session";

export class Connection {
  constructor() {
    this.session = null;
  }

  // Exchanges the token in the address for a session, which lasts as long as this tab.
  async open() {
    const token = location.hash.slice(1);
    this.session = sessionStorage.getItem(KEY);
    if (!token) return;
    history.replaceState(null, "", location.pathname + location.search);
    const response = await this.post("session", { token });
    if (response.ok) {
      this.session = (await response.json()).session;
      sessionStorage.setItem(KEY, this.session);
    }
  }

  async get(path) {
    const response = await fetch(path, { headers: this.headers(), cache: "no-store" });
    if (response.status === 403) throw new SessionError();
    if (!response.ok) throw new Error(`${path}: the server answers ${response.status}`);
    return response;
  }

  post(path, message) {
    return fetch(path, {
      method: "POST",
      headers: { ...this.headers(), "Content-Type": "application/json" },
      body: JSON.stringify(message),
    });
  }

  headers() {
    return this.session ? { Authorization: `Bearer ${this.session}` } : {};
  }
}

export class SessionError extends Error {
  constructor() {
    super("This address was used before, or is incomplete. Open the newest address that the terminal shows.");
  }
}
