//! One order: from the names to the certificate (RFC 8555 §7.4).

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, Identifier,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::challenges::ChallengeSender;
use super::client::Client;
use super::failure::{Failure, Kind, of_challenge, text};
use crate::config::AcmeChallenge;
use crate::net::tls::Challenges;
use crate::setting::TLS_ACME_CHALLENGE;

/// How often the authority is asked whether it has finished, and for how long.
const POLLS: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(180));

/// The longest token of a challenge. RFC 8555 §8.1 wants at least 128 bits; authorities use 32 bytes.
const MAX_TOKEN: usize = 256;

/// A certificate that an authority has issued, in PEM.
pub(super) struct Issued {
    pub(super) chain: String,
    pub(super) key: Zeroizing<String>,
}

/// What an order needs.
pub(super) struct Request<'r> {
    pub(super) client: &'r Client,
    pub(super) account: &'r Account,
    pub(super) domains: &'r [String],
    pub(super) profile: Option<&'r str>,
    pub(super) challenge: AcmeChallenge,
    /// The certificate that the new one replaces (RFC 9773 §5).
    pub(super) replaces: Option<CertificateIdentifier<'r>>,
    pub(super) sender: &'r ChallengeSender,
}

impl Request<'_> {
    /// Orders a certificate. Afterwards, no challenge is pending.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn carry_out(self) -> Result<Issued, Failure> {
        let mut order = self.begin().await?;
        let result = self.complete(&mut order).await;
        self.sender.publish(Arc::default()).await;
        result
    }

    async fn begin(&self) -> Result<Order, Failure> {
        let identifiers: Vec<Identifier> = self.domains.iter().map(|name| Identifier::Dns(name.clone())).collect();
        let order = || {
            let order = NewOrder::new(&identifiers);
            match self.profile {
                Some(profile) => order.profile(profile),
                None => order,
            }
        };
        let failed = |error| self.client.failure(&error).context("the order was refused");
        let Some(replaces) = &self.replaces else { return self.account.new_order(&order()).await.map_err(failed) };
        let refused = match self.account.new_order(&order().replaces(replaces.clone())).await {
            Ok(order) => return Ok(order),
            Err(error) => failed(error),
        };
        if refused.wait.is_some() || refused.kind == Kind::BadNonce {
            return Err(refused);
        }
        // Another account may have ordered the present certificate. That says nothing about this account.
        tracing::debug!(
            event = "acme-renewal-info",
            error = refused.message,
            "the authority does not accept that the order replaces a certificate"
        );
        self.account.new_order(&order()).await.map_err(failed)
    }

    /// Returns the failure that an error after the beginning of an order means: not that the account is gone.
    fn later_failure(&self, error: &Error) -> Failure {
        match self.client.failure(error) {
            failure @ Failure { kind: Kind::BadNonce, .. } => failure,
            failure => Failure { kind: Kind::Other, ..failure },
        }
    }

    async fn complete(&self, order: &mut Order) -> Result<Issued, Failure> {
        let failed = |error| self.later_failure(&error);
        if order.state().authorizations.len() > self.domains.len() {
            return Err(Failure::new("the authority wants to check more names than there are in the order"));
        }
        let challenges = self.challenges(order).await?;
        self.sender.publish(Arc::new(challenges)).await;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(failed)?;
            if authorization.status == AuthorizationStatus::Pending
                && let Some(mut challenge) = authorization.challenge(self.kind())
            {
                let name = challenge.identifier().to_string();
                challenge.set_ready().await.map_err(failed).map_err(|failure| failure.context(&text(&name)))?;
            }
        }
        let status = order.poll_ready(&POLLS).await.map_err(failed);
        // The reason is in the authorization. The order has at most a summary.
        if !matches!(status, Ok(OrderStatus::Ready)) {
            return Err(self.refusal(order).await.unwrap_or_else(|| match status {
                Err(failure) => failure,
                Ok(_) => Failure::new("the authority has not approved the order, and gives no reason"),
            }));
        }
        let key = KeyPair::generate().map_err(|error| Failure::new(error.to_string()))?;
        order.finalize_csr(&self.signing_request(&key)?).await.map_err(failed)?;
        let chain = order.poll_certificate(&POLLS).await.map_err(failed)?;
        Ok(Issued { chain, key: Zeroizing::new(key.serialize_pem()) })
    }

    fn kind(&self) -> ChallengeType {
        match self.challenge {
            AcmeChallenge::Http01 => ChallengeType::Http01,
            AcmeChallenge::TlsAlpn01 | AcmeChallenge::Auto => ChallengeType::TlsAlpn01,
        }
    }

    /// Returns the responses to the challenges of an order.
    async fn challenges(&self, order: &mut Order) -> Result<Challenges, Failure> {
        let mut challenges = Challenges::default();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let authorization = authorization.map_err(|error| self.later_failure(&error))?;
            match authorization.status {
                AuthorizationStatus::Pending => self.add_response(authorization, &mut challenges)?,
                // The authority has checked the name before.
                AuthorizationStatus::Valid => {}
                other => {
                    return Err(Failure::new(format!("the authority offers an authorization that is {other:?}")));
                }
            }
        }
        Ok(challenges)
    }

    fn add_response(&self, authorization: AuthorizationHandle<'_>, challenges: &mut Challenges) -> Result<(), Failure> {
        let name = authorization.identifier().to_string();
        if !self.domains.contains(&name) {
            return Err(Failure::new(format!("the authority wants to check {}, which was not ordered", text(&name))));
        }
        let offered: Vec<String> = authorization.challenges.iter().map(|challenge| label(&challenge.r#type)).collect();
        // With a shorter lifetime: `challenge` borrows the handle for the whole of it.
        let mut authorization = authorization;
        let Some(challenge) = authorization.challenge(self.kind()) else {
            return Err(Failure::new(format!(
                "{name}: the authority offers no challenge {}, but {}; see `{TLS_ACME_CHALLENGE}`",
                label(&self.kind()),
                text(&offered.join(", "))
            )));
        };
        // RFC 8555 §8.1: characters of base64url.
        let is_token = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        if challenge.token.is_empty() || challenge.token.len() > MAX_TOKEN || !challenge.token.bytes().all(is_token) {
            return Err(Failure::new(format!("{name}: the authority sent a token that RFC 8555 does not permit")));
        }
        let key_authorization = challenge.key_authorization();
        match self.challenge {
            AcmeChallenge::Http01 => challenges.add_http(&challenge.token, key_authorization.as_str()),
            AcmeChallenge::TlsAlpn01 | AcmeChallenge::Auto => {
                let digest = Sha256::digest(key_authorization.as_str().as_bytes());
                let added = challenges.add_tls_alpn(&name, &digest.into());
                added.map_err(|error| Failure::new(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Returns why the authority refused a challenge.
    async fn refusal(&self, order: &mut Order) -> Option<Failure> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.ok()?;
            authorization.refresh().await.ok()?;
            let name = authorization.identifier().to_string();
            let found = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref());
            if let Some(problem) = found {
                let failure = of_challenge(problem);
                return Some(failure.context(&format!("{} was not approved", text(&name))));
            }
        }
        None
    }

    /// Returns the certificate signing request (RFC 8555 §7.4).
    fn signing_request(&self, key: &KeyPair) -> Result<Vec<u8>, Failure> {
        let failed = |error: rcgen::Error| Failure::new(error.to_string());
        let mut params = CertificateParams::new(self.domains).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(key).map_err(failed)?.der().to_vec())
    }
}

fn label(challenge: &ChallengeType) -> String {
    match challenge {
        ChallengeType::Http01 => "http-01",
        ChallengeType::Dns01 => "dns-01",
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        ChallengeType::Unknown(other) => other,
        _ => "another one",
    }
    .to_owned()
}
