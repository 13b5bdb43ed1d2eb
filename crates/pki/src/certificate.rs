use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Error, Refused};

/// A certificate, with the facts that people and checks ask for.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: CertificateDer<'static>,
    subject: String,
    issuer: String,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    uris: Vec<String>,
    dns_names: Vec<String>,
    addresses: Vec<IpAddr>,
    is_ca: bool,
    path_len: Option<u32>,
    signature_algorithm: String,
    public_key: Vec<u8>,
}

/// SHA-1 with RSA, DSA and ECDSA: signatures that Go's verifier, and so istiod, refuses.
const SHA1_SIGNATURES: [&str; 3] = ["1.2.840.113549.1.1.5", "1.2.840.10040.4.3", "1.2.840.10045.4.1"];

impl Certificate {
    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    ///
    /// When there is none, or it is not X.509.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        Self::all_from_pem(pem)?.into_iter().next().ok_or_else(|| Error::read("certificate", "the PEM text holds none"))
    }

    /// Reads every certificate of a PEM text, in order. A text without any gives an empty list.
    ///
    /// # Errors
    ///
    /// When one of them is not X.509.
    pub fn all_from_pem(pem: &str) -> Result<Vec<Self>, Error> {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(|der| Self::from_der(der.map_err(|e| Error::read("certificate", format!("{e:?}")))?))
            .collect()
    }

    /// Reads DER.
    ///
    /// # Errors
    ///
    /// When it is not X.509.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, Error> {
        let (_, x509) = X509Certificate::from_der(&der).map_err(|e| Error::read("certificate", e))?;
        let constraints = x509.basic_constraints().ok().flatten();
        let (mut uris, mut dns_names, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        if let Ok(Some(names)) = x509.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                    GeneralName::DNSName(dns) => dns_names.push((*dns).to_owned()),
                    GeneralName::IPAddress([a, b, c, d]) => addresses.push(IpAddr::from([*a, *b, *c, *d])),
                    GeneralName::IPAddress(bytes) => {
                        addresses.extend(<[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from));
                    }
                    _ => {}
                }
            }
        }
        Ok(Self {
            subject: x509.subject().to_string(),
            issuer: x509.issuer().to_string(),
            serial: x509.raw_serial_as_string(),
            not_before: at(x509.validity().not_before.timestamp()),
            not_after: at(x509.validity().not_after.timestamp()),
            uris,
            dns_names,
            addresses,
            is_ca: constraints.as_ref().is_some_and(|c| c.value.ca),
            path_len: constraints.and_then(|c| c.value.path_len_constraint),
            signature_algorithm: x509.signature_algorithm.algorithm.to_id_string(),
            public_key: x509.public_key().raw.to_vec(),
            der,
        })
    }

    /// As DER.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// As PEM, with a final newline.
    #[must_use]
    pub fn pem(&self) -> String {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(&self.der);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for line in body.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|b| char::from(*b)));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        pem
    }

    /// The subject's distinguished name.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The issuer's distinguished name.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The serial number, as colon-separated hex.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// From when it is valid.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when it is valid.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// SHA-256 of the DER, as hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        Sha256::digest(&self.der).iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// The URI SANs.
    #[must_use]
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// The DNS SANs.
    #[must_use]
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// The IP SANs.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether it may sign certificates (basic constraints).
    #[must_use]
    pub fn is_ca(&self) -> bool {
        self.is_ca
    }

    /// How many more authorities may follow it, if that is limited.
    #[must_use]
    pub fn path_len(&self) -> Option<u32> {
        self.path_len
    }

    /// Whether subject and issuer are one.
    #[must_use]
    pub fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    /// Whether its signature is of a kind that verifiers no longer accept.
    #[must_use]
    pub fn is_signed_with_sha1(&self) -> bool {
        SHA1_SIGNATURES.contains(&self.signature_algorithm.as_str())
    }

    /// The public key, as DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn public_der(&self) -> &[u8] {
        &self.public_key
    }

    /// Whether `issuer`'s key made this certificate's signature.
    #[must_use]
    pub fn is_signed_by(&self, issuer: &Certificate) -> bool {
        let (Ok((_, this)), Ok((_, other))) =
            (X509Certificate::from_der(&self.der), X509Certificate::from_der(&issuer.der))
        else {
            return false;
        };
        this.issuer() == other.subject() && this.verify_signature(Some(other.public_key())).is_ok()
    }

    /// Whether it is valid at `now`.
    ///
    /// # Errors
    ///
    /// [`Refused::Expired`] or [`Refused::NotYetValid`].
    pub fn check_time(&self, now: SystemTime) -> Result<(), Refused> {
        if now > self.not_after {
            return Err(Refused::Expired { subject: self.subject.clone(), since: self.not_after });
        }
        if now < self.not_before {
            return Err(Refused::NotYetValid { subject: self.subject.clone(), from: self.not_before });
        }
        Ok(())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("subject", &self.subject)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

/// Checks that `signing` leads to one of `roots` over certificates of `chain`, that every one of them is valid at
/// `now`, may sign, obeys the path lengths and is not signed with SHA-1: what istiod demands of `cacerts` at load.
///
/// # Errors
///
/// The first reason against it.
pub fn verify_chain(
    signing: &Certificate,
    chain: &[Certificate],
    roots: &[Certificate],
    now: SystemTime,
) -> Result<(), Refused> {
    let mut current = signing;
    // Authorities below `current` on the way down to the leaf: what a path length counts.
    let mut below: u32 = 0;
    loop {
        current.check_time(now)?;
        if !current.is_ca() {
            return Err(Refused::NotAnAuthority { subject: current.subject.clone() });
        }
        if current.path_len().is_some_and(|len| len < below) {
            return Err(Refused::PathTooLong { subject: current.subject.clone() });
        }
        if roots.contains(current) {
            return Ok(());
        }
        if current.is_signed_with_sha1() {
            return Err(Refused::Sha1 { subject: current.subject.clone() });
        }
        let issuer = roots.iter().chain(chain).find(|c| *c != current && current.is_signed_by(c));
        let Some(issuer) = issuer.filter(|_| below < 16) else {
            return Err(Refused::NoPath { subject: signing.subject.clone() });
        };
        current = issuer;
        below += 1;
    }
}

/// Whether `shown` (a leaf, then whatever was sent with it) leads to `root`, by signatures alone: which root a
/// certificate is of, not whether it is valid.
#[must_use]
pub fn leads_to(shown: &[Certificate], root: &Certificate) -> bool {
    let Some(mut current) = shown.first() else { return false };
    for _ in 0..=shown.len() {
        if current == root || current.is_signed_by(root) {
            return true;
        }
        match shown.iter().find(|other| *other != current && current.is_signed_by(other)) {
            Some(issuer) => current = issuer,
            None => return false,
        }
    }
    false
}

fn at(seconds: i64) -> SystemTime {
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds),
        Err(_) => UNIX_EPOCH,
    }
}
