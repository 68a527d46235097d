//! The account of this server with an authority (RFC 8555 §7.3).

use instant_acme::{Account, ExternalAccountKey, NewAccount};

use super::client::Client;
use super::failure::Failure;
use super::store::Store;
use crate::config::Acme;

/// Returns the account of this server with the authority, which is made if there is none.
pub(super) async fn account(client: &Client, store: &Store, acme: &Acme) -> Result<Account, Failure> {
    let failed = |error| client.failure(&error);
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let contact: Vec<&str> = acme.contact.as_deref().into_iter().collect();
    if let Some(stored) = store.account(&acme.directory)? {
        let account = builder.from_credentials(stored.credentials).await.map_err(failed)?;
        if stored.contact != acme.contact {
            account.update_contacts(&contact).await.map_err(failed)?;
            if let Some(stored) = store.account(&acme.directory)? {
                store.keep_account(&acme.directory, &stored.credentials, acme.contact.as_deref())?;
            }
        }
        return Ok(account);
    }
    new_account(client, store, acme).await
}

/// Makes an account for this server with the authority, and keeps it in place of an earlier one.
pub(super) async fn new_account(client: &Client, store: &Store, acme: &Acme) -> Result<Account, Failure> {
    let failed = |error| client.failure(&error);
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let contact: Vec<&str> = acme.contact.as_deref().into_iter().collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let external = acme.external_account.as_ref();
    let external = external.map(|own| ExternalAccountKey::new(own.key_id.clone(), own.key.as_bytes()));
    let created = builder.create(&new, acme.directory.clone(), external.as_ref()).await;
    let (account, credentials) =
        created.map_err(|error| failed(error).context("the authority has made no account for this server"))?;
    store.keep_account(&acme.directory, &credentials, acme.contact.as_deref())?;
    tracing::info!(
        event = "acme-account",
        directory = acme.directory,
        "the authority has made an account for this server"
    );
    Ok(account)
}
