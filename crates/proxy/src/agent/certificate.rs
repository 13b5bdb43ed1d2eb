//! Keeps the workload's certificate: obtains it, renews it at half its life, never gives up.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stolos_pki::{Credentials, Roots, SpiffeId, WorkloadRequest};
use stolos_serve::Container;
use stolos_serve::because;
use stolos_xds::client::pause;
use stolos_xds::istio::v1::auth::IstioCertificateRequest;
use stolos_xds::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use tokio::sync::watch;

use super::{ATTEMPT, Identity, Settings, credentials_of_call, settings, target};

/// The waits between attempts, the first and the longest, while there is no certificate.
const FIRST_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// The same while there is one, and half its life to get the next.
const RENEWAL_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A renewal follows the one before by at least this.
const SHORTEST: Duration = Duration::from_secs(1);
/// How often the mounted roots and the name of the signer are looked at, give or take a quarter: others mean that the
/// mesh's root or its cluster's signing certificate is being replaced, and the authority's answer says what to trust
/// meanwhile.
const ROOTS_INTERVAL: Duration = Duration::from_secs(2);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum NotObtained {
    #[error("cannot make a certificate request: {0}")]
    Request(#[from] stolos_pki::Error),
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("{}", because(.0))]
    Connect(#[from] stolos_xds::client::Unreachable),
    #[error("the authority refuses: {:?}: {}", .0.code(), .0.message())]
    Refused(#[from] Box<tonic::Status>),
    #[error("the authority did not answer within {ATTEMPT:?}")]
    Slow,
    #[error("the authority's answer cannot be used: {0}")]
    Answer(String),
}

/// The task that keeps the certificate.
pub(super) struct Renewal {
    container: Container,
    settings: Arc<Settings>,
    identities: watch::Sender<Option<Arc<Identity>>>,
    failures: watch::Sender<Option<String>>,
}

impl Renewal {
    pub(super) fn new(
        container: Container,
        settings: Arc<Settings>,
        identities: watch::Sender<Option<Arc<Identity>>>,
        failures: watch::Sender<Option<String>>,
    ) -> Self {
        Self { container, settings, identities, failures }
    }

    pub(super) async fn run(self) {
        let mut attempts = 0_u32;
        loop {
            let mounted = settings::mounted_authority(&self.container).ok();
            match self.obtain().await {
                Ok(identity) => {
                    attempts = 0;
                    let (now, until) = (SystemTime::now(), identity.credentials.leaf().not_after());
                    let wait = half_life(until.duration_since(now).unwrap_or_default(), rand::random());
                    self.container.output.line(format!(
                        "certificate of {} obtained, serial {}, to be renewed in {} s",
                        self.settings.identity,
                        identity.credentials.leaf().serial(),
                        wait.as_secs()
                    ));
                    self.identities.send_replace(Some(Arc::new(identity)));
                    self.failures.send_replace(None);
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.other_authority(mounted) => {
                            self.container.output.line("the mesh's roots or its signer have changed, renewing the certificate");
                        }
                    }
                }
                Err(error) => {
                    attempts += 1;
                    let why = error.to_string();
                    tracing::warn!(attempts, why, "no certificate");
                    // A line for a new reason, not for every attempt.
                    if self.failures.borrow().as_ref() != Some(&why) {
                        self.container.output.line(format!("cannot obtain a certificate: {why}; trying again"));
                    }
                    self.failures.send_replace(Some(why));
                    let has_one = self.identities.borrow().is_some();
                    let backoff = if has_one { RENEWAL_BACKOFF } else { FIRST_BACKOFF };
                    tokio::time::sleep(pause(attempts, backoff, rand::random())).await;
                }
            }
        }
    }

    /// One attempt, bounded.
    async fn obtain(&self) -> Result<Identity, NotObtained> {
        let request = WorkloadRequest::new(&self.settings.identity)?;
        let metadata = credentials_of_call(&self.container, &self.settings).await?;
        let channel = target(&self.container, &self.settings.authority).connect().await?;
        let mut call = tonic::Request::new(IstioCertificateRequest {
            csr: request.csr_pem.clone(),
            validity_duration: self.settings.lifetime,
            metadata: None,
        });
        *call.metadata_mut() = metadata;
        let mut authority = IstioCertificateServiceClient::new(channel);
        let answer = tokio::time::timeout(ATTEMPT, authority.create_certificate(call)).await;
        let answer = answer.map_err(|_| NotObtained::Slow)?.map_err(Box::new)?;
        identity(&answer.into_inner().cert_chain, &request, &self.settings.identity)
    }

    /// Waits until the mounted roots or the signer are others than these, and readable.
    async fn other_authority(&self, before: Option<(Roots, Option<String>)>) {
        loop {
            tokio::time::sleep(ROOTS_INTERVAL.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
            if let Ok(now) = settings::mounted_authority(&self.container)
                && before.as_ref() != Some(&now)
            {
                return;
            }
        }
    }
}

/// What an authority's answer makes of the caller: the last entry holds the roots, the others are the chain.
fn identity(answer: &[String], request: &WorkloadRequest, asked: &SpiffeId) -> Result<Identity, NotObtained> {
    let unusable = |error: stolos_pki::Error| NotObtained::Answer(error.to_string());
    let Some((roots, chain)) = answer.split_last().filter(|(_, chain)| !chain.is_empty()) else {
        return Err(NotObtained::Answer("it has no certificate and root".into()));
    };
    let roots = Roots::from_pem(roots).map_err(unusable)?;
    let credentials = Credentials::from_pem(&chain.concat(), request.key.to_pem().expose()).map_err(unusable)?;
    let uris = credentials.leaf().uris();
    if uris != [asked.to_string()] {
        // The token decides; a proxy that believes to be someone else would only be refused later.
        tracing::warn!(asked = %asked, given = ?uris, "the certificate is for another identity");
    }
    Ok(Identity { credentials, roots })
}

/// When to renew what lives this long: at half, give or take a hundredth, so that proxies that started together do
/// not come back together.
fn half_life(left: Duration, random: f64) -> Duration {
    left.mul_f64(0.49 + random * 0.02).max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_half_life_and_never_frantic() {
        let day = Duration::from_secs(86_400);
        for (left, random, expected) in
            [(day, 0.5, day / 2), (day, 0.0, day.mul_f64(0.49)), (Duration::ZERO, 0.5, SHORTEST)]
        {
            let difference = half_life(left, random).abs_diff(expected);
            assert!(difference < Duration::from_millis(1), "{left:?} {random}: {difference:?}");
        }
    }

    #[test]
    fn an_answer_without_a_root_is_no_identity() {
        let id = SpiffeId::new("cluster.local", "n", "s");
        let request = WorkloadRequest::new(&id).unwrap();
        for answer in [vec![], vec!["only one".to_owned()]] {
            let error = identity(&answer, &request, &id).unwrap_err().to_string();
            assert_eq!(error, "the authority's answer cannot be used: it has no certificate and root");
        }
    }
}
