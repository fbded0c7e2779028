// Sign in with a token, which the browser keeps where no script can read it.
import { html, useState } from "../html.js";
import { signIn } from "../api.js";
import { Failure } from "../parts.js";

export function SignInView({ query }) {
  const [error, setError] = useState(null);
  const next = query.get("next") || "/";
  const submit = async (event) => {
    event.preventDefault();
    try {
      await signIn(new FormData(event.target).get("token").trim());
      location.assign(next.startsWith("/") && !next.startsWith("//") ? next : "/");
    } catch (failed) {
      setError(failed);
    }
  };
  return html`
    <h1>Sign in</h1>
    <p>Ask the operator for a token (<code>evalrpc token create</code>).</p>
    <${Failure} error=${error} />
    <form class="filters" onSubmit=${submit}>
      <label>Token <input name="token" type="password" autocomplete="current-password" required size="40" /></label>
      <button class="primary">Sign in</button>
    </form>`;
}
