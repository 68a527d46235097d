//! `turn-credential key`.

use turnserver::auth::{KeyHash, api_key};
use zeroize::Zeroizing;

use crate::Failure;
use crate::args::Key;

/// Returns a new key and its block for the configuration.
pub(crate) fn run(arguments: &Key) -> Result<Zeroizing<String>, Failure> {
    let mut random = Zeroizing::new([0; 32]);
    getrandom::getrandom(random.as_mut())
        .map_err(|error| Failure::Failed(format!("the random number generator of the system failed: {error}")))?;
    let key = api_key(&random);
    let hash = KeyHash::of(key.as_bytes()).to_hex();
    Ok(Zeroizing::new(format!(
        "# The key, for the application only. It cannot be shown again.\n\
         {}\n\n\
         # For the configuration of the server, or for the file of http.keys-file:\n\
         [[http.keys]]\nname = \"{}\"\nsha256 = \"{hash}\"\n",
        key.as_str(),
        arguments.name
    )))
}
