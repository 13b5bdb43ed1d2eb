use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};

use crate::{Certificate, Credentials, Error, PrivateKey, Secret, SpiffeId, verify_chain};

/// Not-before lies this far in the past, so that a peer whose clock is a little behind accepts a new certificate
/// (Istio's default skew).
const SKEW: Duration = Duration::from_secs(120);

/// The longest life of a workload certificate (Istio's `MAX_WORKLOAD_CERT_TTL`).
const LONGEST_WORKLOAD: Duration = Duration::from_secs(90 * 24 * 3600);

/// Why certificates that somebody brought are not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be read at all.
    #[error("{0}")]
    Unreadable(String),
    /// The key belongs to another certificate.
    #[error("the private key is not the key of `{subject}`")]
    KeyMismatch {
        /// The certificate.
        subject: String,
    },
    /// Its time is over.
    #[error("`{subject}` has expired")]
    Expired {
        /// The certificate.
        subject: String,
        /// When it ended.
        since: SystemTime,
    },
    /// Its time has not begun.
    #[error("`{subject}` is not valid yet")]
    NotYetValid {
        /// The certificate.
        subject: String,
        /// When it begins.
        from: SystemTime,
    },
    /// It may not sign.
    #[error("`{subject}` is not a certificate authority (basic constraints CA:TRUE is missing)")]
    NotAnAuthority {
        /// The certificate.
        subject: String,
    },
    /// It may not sign authorities that sign.
    #[error("`{subject}` may not have as many authorities below it (path length)")]
    PathTooLong {
        /// The certificate.
        subject: String,
    },
    /// Its signature is too weak.
    #[error("`{subject}` is signed with SHA-1, which verifiers refuse")]
    Sha1 {
        /// The certificate.
        subject: String,
    },
    /// It leads to no root.
    #[error("`{subject}` does not chain to the root certificate")]
    NoPath {
        /// The certificate.
        subject: String,
    },
    /// The chain does not begin with the signing certificate, so that peers could not build a path.
    #[error("`cert-chain.pem` does not begin with the signing certificate")]
    ChainOrder,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// Somebody who signs: the root of a mesh, or the intermediate of one cluster.
pub struct Authority {
    certificate: Certificate,
    /// From the signing certificate upward, without the roots.
    chain: Vec<Certificate>,
    roots: Vec<Certificate>,
    roots_pem: String,
    issuer: Issuer<'static, KeyPair>,
    key: PrivateKey,
}

impl Authority {
    /// A new self-signed root: `O=<organization>, CN=Root CA`, ECDSA P-256.
    ///
    /// # Errors
    ///
    /// When the system has no randomness or `organization` cannot stand in a name.
    pub fn new_root(organization: &str, validity: Duration, now: SystemTime) -> Result<Self, Error> {
        let key = PrivateKey::generate()?;
        let mut params = params(now, validity)?;
        params.distinguished_name = distinguished(organization, "Root CA", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let made = params.self_signed(key.pair()).map_err(|e| Error::make("root certificate", e))?;
        let certificate = Certificate::from_der(made.der().clone())?;
        Self::assemble(certificate.clone(), vec![], vec![certificate], key)
    }

    /// A root of the user's own, checked.
    ///
    /// # Errors
    ///
    /// When key and certificate do not belong together, or the certificate is expired, not yet valid, no authority,
    /// not self-issued, or signed with SHA-1.
    pub fn load(cert_pem: &str, key_pem: &str, now: SystemTime) -> Result<Self, Refused> {
        let certificate = Certificate::from_pem(cert_pem)?;
        let key = PrivateKey::from_pem(key_pem)?;
        if key.public_der() != certificate.public_der() {
            return Err(Refused::KeyMismatch { subject: certificate.subject().to_owned() });
        }
        if certificate.is_signed_with_sha1() {
            return Err(Refused::Sha1 { subject: certificate.subject().to_owned() });
        }
        if certificate.path_len() == Some(0) {
            return Err(Refused::PathTooLong { subject: certificate.subject().to_owned() });
        }
        if !certificate.is_self_issued() {
            return Err(Refused::NoPath { subject: certificate.subject().to_owned() });
        }
        verify_chain(&certificate, &[], std::slice::from_ref(&certificate), now)?;
        Ok(Self::assemble(certificate.clone(), vec![], vec![certificate], key)?)
    }

    fn assemble(
        certificate: Certificate,
        chain: Vec<Certificate>,
        roots: Vec<Certificate>,
        key: PrivateKey,
    ) -> Result<Self, Error> {
        let pair = KeyPair::from_pem(key.to_pem().expose()).map_err(|e| Error::read("private key", e))?;
        let issuer =
            Issuer::from_ca_cert_der(certificate.der(), pair).map_err(|e| Error::read("signing certificate", e))?;
        let roots_pem = roots.iter().map(Certificate::pem).collect();
        Ok(Self { certificate, chain, roots, roots_pem, issuer, key })
    }

    /// The same authority among several roots, its own included: what a mesh trusts while its root is being replaced.
    #[must_use]
    pub fn among(mut self, roots: Vec<Certificate>) -> Self {
        self.roots_pem = roots.iter().map(Certificate::pem).collect();
        self.roots = roots;
        self
    }

    /// The signing certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The signing key, as PKCS#8 PEM.
    #[must_use]
    pub fn key_pem(&self) -> Secret {
        self.key.to_pem()
    }

    /// The signing key.
    #[must_use]
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The roots this authority leads to.
    #[must_use]
    pub fn roots(&self) -> &[Certificate] {
        &self.roots
    }

    /// The roots as a PEM bundle.
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// A signing certificate for one cluster, in the form istiod loads from Secret `cacerts`: `O=<organization>,
    /// CN=Intermediate CA, L=<cluster>`, path length 0, SANs as Istio's (`istiod.istio-system.svc`, and the SPIFFE
    /// identity of the cluster's signer).
    ///
    /// It never outlives this authority.
    ///
    /// # Errors
    ///
    /// When the system has no randomness or a name cannot stand in a certificate.
    pub fn issue_intermediate(
        &self,
        cluster: &str,
        organization: &str,
        trust_domain: &str,
        validity: Duration,
        now: SystemTime,
    ) -> Result<CaCerts, Error> {
        let key = PrivateKey::generate()?;
        let mut params = self.params_below(now, validity)?;
        signs_for(&mut params, cluster, organization, trust_domain)?;
        let made = params.signed_by(key.pair(), &self.issuer).map_err(|e| Error::make("intermediate", e))?;
        let certificate = Certificate::from_der(made.der().clone())?;
        // Of several roots only the one that this leads to belongs to its chain.
        let top = self.chain.last().unwrap_or(&self.certificate);
        let own = self.roots.iter().filter(|root| *root == top || top.is_signed_by(root));
        let upward: String = self.chain.iter().chain(own).map(Certificate::pem).collect();
        Ok(CaCerts {
            ca_cert: certificate.pem(),
            ca_key: key.to_pem(),
            cert_chain: format!("{}{upward}", certificate.pem()),
            root_cert: self.roots_pem.clone(),
        })
    }

    /// A workload certificate for the key in `csr_pem`: PEM, leaf first, roots last, as `CreateCertificate` answers
    /// (Istio 1.30). Nothing but the public key is taken from the request.
    ///
    /// `ttl` of zero means a day. It never outlives this authority.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when the request cannot be read, its signature is wrong, or it asks for more than 90 days.
    pub fn sign_workload(
        &self,
        csr_pem: &str,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, Error> {
        let ttl = if ttl.is_zero() { Duration::from_secs(24 * 3600) } else { ttl };
        if ttl > LONGEST_WORKLOAD {
            return Err(Error::Request(format!("{} s is longer than the 90 days a workload may have", ttl.as_secs())));
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| Error::Request(e.to_string()))?;
        let mut params = self.params_below(now, ttl)?;
        // An empty subject makes the SAN extension critical, as Istio's is (RFC 5280, 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&id.to_string())?];
        leaf_usages(&mut params);
        let made = params.signed_by(&request.public_key, &self.issuer).map_err(|e| Error::make("certificate", e))?;
        let leaf = Certificate::from_der(made.der().clone())?;
        let mut answer = vec![leaf.pem()];
        answer.extend(self.chain.iter().map(Certificate::pem));
        answer.push(self.roots_pem.clone());
        Ok(answer)
    }

    /// A serving certificate with a key of its own, such as the control plane's.
    ///
    /// # Errors
    ///
    /// When the system has no randomness or a name cannot stand in a certificate.
    pub fn sign_server(
        &self,
        dns_names: &[String],
        addresses: &[IpAddr],
        id: Option<&SpiffeId>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Credentials, Error> {
        let key = PrivateKey::generate()?;
        let mut params = self.params_below(now, ttl)?;
        params.distinguished_name = DistinguishedName::new();
        for name in dns_names {
            params.subject_alt_names.push(dns(name)?);
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        if let Some(id) = id {
            params.subject_alt_names.push(uri(&id.to_string())?);
        }
        leaf_usages(&mut params);
        let made = params.signed_by(key.pair(), &self.issuer).map_err(|e| Error::make("certificate", e))?;
        let mut chain = vec![Certificate::from_der(made.der().clone())?];
        chain.extend(self.chain.iter().cloned());
        Credentials::new(chain, &key)
    }

    fn params_below(&self, now: SystemTime, validity: Duration) -> Result<CertificateParams, Error> {
        let mut params = params(now, validity)?;
        params.not_after = params.not_after.min(moment(self.certificate.not_after())?);
        Ok(params)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// The four files of Istio's Secret `cacerts`, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCerts {
    /// `ca-cert.pem`: the signing certificate.
    pub ca_cert: String,
    /// `ca-key.pem`: its key.
    pub ca_key: Secret,
    /// `cert-chain.pem`: the signing certificate, then upward to the root.
    pub cert_chain: String,
    /// `root-cert.pem`: the root, or several while one is being replaced.
    pub root_cert: String,
}

/// A new key and the request to have a signing certificate made of it, for an authority that is not ours.
pub struct IntermediateRequest {
    /// The PKCS#10 request: `O=<organization>, CN=Intermediate CA, L=<cluster>`, with the SANs, basic constraints and key
    /// usages that [`Authority::issue_intermediate`] gives.
    pub csr_pem: String,
    key: PrivateKey,
}

/// What a cluster's signing certificate is, whoever signs it.
fn signs_for(
    params: &mut CertificateParams,
    cluster: &str,
    organization: &str,
    trust_domain: &str,
) -> Result<(), Error> {
    params.distinguished_name = distinguished(organization, "Intermediate CA", Some(cluster));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names =
        vec![uri(&format!("spiffe://{trust_domain}/ns/istio-system/sa/istiod"))?, dns("istiod.istio-system.svc")?];
    Ok(())
}

impl IntermediateRequest {
    /// A request for the signing certificate of one cluster.
    ///
    /// # Errors
    ///
    /// When the system has no randomness or a name cannot stand in a certificate.
    pub fn new(cluster: &str, organization: &str, trust_domain: &str) -> Result<Self, Error> {
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::default();
        signs_for(&mut params, cluster, organization, trust_domain)?;
        let made = params.serialize_request(key.pair()).map_err(|e| Error::make("certificate request", e))?;
        let csr_pem = made.pem().map_err(|e| Error::make("certificate request", e))?;
        Ok(Self { csr_pem, key })
    }
}

impl CaCerts {
    /// The files that an authority's answer to `request` makes: the signing certificate first, then upward; the root is
    /// the last that is its own issuer.
    ///
    /// # Errors
    ///
    /// When the answer holds no certificate, one for another key, or no root. [`check`](Self::check) says the rest.
    pub fn from_answer(request: &IntermediateRequest, answer: &str) -> Result<Self, Refused> {
        let chain = Certificate::all_from_pem(answer)?;
        let Some(signing) = chain.first() else {
            return Err(Refused::Unreadable("there is no certificate in it".to_owned()));
        };
        if signing.public_der() != request.key.public_der() {
            return Err(Refused::KeyMismatch { subject: signing.subject().to_owned() });
        }
        let Some(root) = chain.iter().rev().find(|certificate| certificate.is_self_issued()) else {
            let last = chain.last().map(|last| last.subject().to_owned()).unwrap_or_default();
            return Err(Refused::Unreadable(format!("it ends with `{last}`, which is no root")));
        };
        Ok(Self {
            ca_cert: signing.pem(),
            ca_key: request.key.to_pem(),
            cert_chain: chain.iter().map(Certificate::pem).collect(),
            root_cert: root.pem(),
        })
    }
}

/// What a checked `cacerts` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFacts {
    /// The signing certificate.
    pub signing: Certificate,
    /// The roots it brings.
    pub roots: Vec<Certificate>,
}

impl CaCerts {
    /// Checks what istiod checks at load, and that peers can build a path.
    ///
    /// # Errors
    ///
    /// The first reason against it.
    pub fn check(&self, now: SystemTime) -> Result<CaFacts, Refused> {
        self.check_with(&PrivateKey::from_pem(self.ca_key.expose())?.public_der(), now)
    }

    /// The same where of the key only its public half (DER SubjectPublicKeyInfo) is at hand.
    ///
    /// # Errors
    ///
    /// [`Refused`] says what does not fit.
    pub fn check_with(&self, public_key: &[u8], now: SystemTime) -> Result<CaFacts, Refused> {
        let signing = Certificate::from_pem(&self.ca_cert)?;
        let chain = Certificate::all_from_pem(&self.cert_chain)?;
        let roots = Certificate::all_from_pem(&self.root_cert)?;
        if public_key != signing.public_der() {
            return Err(Refused::KeyMismatch { subject: signing.subject().to_owned() });
        }
        verify_chain(&signing, &chain, &roots, now)?;
        if chain.first() != Some(&signing) {
            return Err(Refused::ChainOrder);
        }
        Ok(CaFacts { signing, roots })
    }

    /// The authority these files make.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    pub fn authority(&self, now: SystemTime) -> Result<Authority, Refused> {
        let CaFacts { signing, roots } = self.check(now)?;
        let chain = Certificate::all_from_pem(&self.cert_chain)?.into_iter().filter(|c| !roots.contains(c)).collect();
        Ok(Authority::assemble(signing, chain, roots, PrivateKey::from_pem(self.ca_key.expose())?)?)
    }
}

/// The one place where certificate parameters are made: rcgen's own defaults are valid for two thousand years and
/// leave the authority key identifier out.
fn params(now: SystemTime, validity: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.not_before = moment(now - SKEW)?;
    params.not_after = moment(now + validity)?;
    params.use_authority_key_identifier_extension = true;
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| Error::make("serial number", "the system has no randomness"))?;
    // Positive and without a leading zero byte, whatever the draw (RFC 5280, 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn leaf_usages(params: &mut CertificateParams) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
}

fn distinguished(organization: &str, common_name: &str, locality: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, organization);
    name.push(DnType::CommonName, common_name);
    if let Some(locality) = locality {
        name.push(DnType::LocalityName, locality);
    }
    name
}

fn uri(text: &str) -> Result<SanType, Error> {
    text.try_into().map(SanType::URI).map_err(|e| Error::make("subject alternative name", e))
}

fn dns(text: &str) -> Result<SanType, Error> {
    text.try_into().map(SanType::DnsName).map_err(|e| Error::make("subject alternative name", e))
}

fn moment(at: SystemTime) -> Result<time::OffsetDateTime, Error> {
    let seconds = at.duration_since(UNIX_EPOCH).map_err(|e| Error::make("validity", e))?.as_secs();
    let seconds = i64::try_from(seconds).map_err(|e| Error::make("validity", e))?;
    time::OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| Error::make("validity", e))
}
