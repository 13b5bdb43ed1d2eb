//! The server's own authority, certificates and token key: made once, kept with mode 0600, used again.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::Digest as _;

/// Why keys could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// A key or certificate cannot be made or read.
    #[error("cannot make or read the {what}: {source}")]
    Certificate {
        /// Which one.
        what: &'static str,
        /// Why.
        source: rcgen::Error,
    },
    /// A file that is there is not what it should be.
    #[error("cannot use the {what}: {why}")]
    Unusable {
        /// Which one.
        what: &'static str,
        /// Why.
        why: String,
    },
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Credentials {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Everything that makes a server trusted and lets it trust.
pub(crate) struct Keys {
    /// The authority's certificate, in PEM.
    pub(crate) ca: String,
    /// A client certificate of group `system:masters`.
    pub(crate) admin: Credentials,
    /// What the server shows.
    pub(crate) tls: Arc<rustls::ServerConfig>,
    /// Signs tokens.
    pub(crate) token_encoding: EncodingKey,
    /// Checks tokens.
    pub(crate) token_decoding: DecodingKey,
    /// The id of that key.
    pub(crate) token_key_id: String,
    /// The public part for `/openid/v1/jwks`.
    pub(crate) jwks: serde_json::Value,
    issuer: Issuer<'static, KeyPair>,
}

const DAY: time::Duration = time::Duration::DAY;

impl Keys {
    /// Reads what is in `dir` (or makes everything anew without one) for a server known by `names` and `addresses`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or written, or is not what it should be.
    pub(crate) fn load(dir: Option<&Path>, names: &[String], addresses: &[IpAddr]) -> Result<Self, Error> {
        let make = |what| move |source| Error::Certificate { what, source };
        let mut fresh: Vec<(&str, String)> = Vec::new();
        let (ca_certificate, ca_key) = match (read(dir, "ca.crt")?, read(dir, "ca.key")?) {
            (Some(certificate), Some(key)) => (certificate, KeyPair::from_pem(&key).map_err(make("authority's key"))?),
            _ => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make("authority's key"))?;
                let mut params = params("kubernetes", None, 3650 * DAY);
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages =
                    vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
                let certificate = params.self_signed(&key).map_err(make("authority"))?.pem();
                fresh.push(("ca.key", key.serialize_pem()));
                fresh.push(("ca.crt", certificate.clone()));
                (certificate, key)
            }
        };
        let issuer = Issuer::from_ca_cert_pem(&ca_certificate, ca_key).map_err(make("authority"))?;

        let token_key = match read(dir, "sa.key")? {
            Some(key) => KeyPair::from_pem(&key).map_err(make("token key"))?,
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make("token key"))?;
                fresh.push(("sa.key", key.serialize_pem()));
                key
            }
        };
        let public = token_key.public_key_raw();
        if public.len() != 65 {
            return Err(Error::Unusable { what: "token key", why: "it is not an ECDSA P-256 key".into() });
        }
        let (x, y) = (URL_SAFE_NO_PAD.encode(&public[1..33]), URL_SAFE_NO_PAD.encode(&public[33..]));
        let token_key_id = URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(public));
        let unusable =
            |what| move |error: jsonwebtoken::errors::Error| Error::Unusable { what, why: error.to_string() };
        let token_decoding = DecodingKey::from_ec_components(&x, &y).map_err(unusable("token key"))?;
        let token_encoding = EncodingKey::from_ec_der(token_key.serialized_der());
        let jwks = serde_json::json!({"keys": [
            {"use": "sig", "kty": "EC", "kid": token_key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y},
        ]});

        let server = sign(&issuer, "kube-apiserver", None, names, addresses, ExtendedKeyUsagePurpose::ServerAuth)?;
        let admin = match (read(dir, "admin.crt")?, read(dir, "admin.key")?) {
            (Some(certificate), Some(key)) if is_fresh(&certificate) => Credentials { certificate, key },
            _ => {
                let client = ExtendedKeyUsagePurpose::ClientAuth;
                let admin = sign(&issuer, "kubernetes-admin", Some("system:masters"), &[], &[], client)?;
                fresh.push(("admin.key", admin.key.clone()));
                fresh.push(("admin.crt", admin.certificate.clone()));
                admin
            }
        };
        let tls = server_config(&ca_certificate, &server)?;
        if let Some(dir) = dir {
            write_all(dir, &fresh)?;
        }
        Ok(Self { ca: ca_certificate, admin, tls, token_encoding, token_decoding, token_key_id, jwks, issuer })
    }

    /// A client certificate for `user` in `group`.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(crate) fn client(&self, user: &str, group: Option<&str>) -> Result<Credentials, Error> {
        sign(&self.issuer, user, group, &[], &[], ExtendedKeyUsagePurpose::ClientAuth)
    }
}

/// The one place where certificate parameters are made: rcgen's own defaults are valid for two thousand years.
fn params(name: &str, organization: Option<&str>, validity: time::Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    if let Some(organization) = organization {
        subject.push(DnType::OrganizationName, organization);
    }
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::HOUR;
    params.not_after = now + validity;
    params.use_authority_key_identifier_extension = true;
    params
}

fn sign(
    issuer: &Issuer<'static, KeyPair>,
    name: &str,
    organization: Option<&str>,
    names: &[String],
    addresses: &[IpAddr],
    usage: ExtendedKeyUsagePurpose,
) -> Result<Credentials, Error> {
    let make = |what| move |source| Error::Certificate { what, source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make("certificate's key"))?;
    let mut params = params(name, organization, 365 * DAY);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    for name in names {
        let name = name.as_str().try_into().map_err(make("certificate's name"))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    let certificate = params.signed_by(&key, issuer).map_err(make("certificate"))?;
    Ok(Credentials { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn server_config(ca: &str, server: &Credentials) -> Result<Arc<rustls::ServerConfig>, Error> {
    let unusable = |what: &'static str| move |why: String| Error::Unusable { what, why };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|e| unusable("authority")(e.to_string()))?;
    roots.add(root).map_err(|e| unusable("authority")(e.to_string()))?;
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|e| unusable("authority")(e.to_string()))?;
    let chain = CertificateDer::pem_slice_iter(server.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| unusable("server's certificate")(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(server.key.as_bytes());
    let key = key.map_err(|e| unusable("server's key")(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable("TLS versions")(e.to_string()))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|e| unusable("server's certificate")(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Whether a certificate is good for another month.
fn is_fresh(certificate: &str) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(certificate.as_bytes()) else { return false };
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let soon = time::OffsetDateTime::now_utc() + 30 * DAY;
    parsed.validity().not_after.to_datetime() > soon
}

fn read(dir: Option<&Path>, name: &str) -> Result<Option<String>, Error> {
    let Some(dir) = dir else { return Ok(None) };
    let path = dir.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { what: "read", path, source }),
    }
}

/// Writes files side by side: the disk is waited for once, not once per file.
///
/// A key and its certificate need no order: when one of two is missing both are made anew.
fn write_all(dir: &Path, files: &[(&str, String)]) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let writing: Vec<_> = files.iter().map(|(name, text)| scope.spawn(|| write(dir, name, text))).collect();
        for written in writing {
            written.join().unwrap_or_else(|_| {
                let source = std::io::Error::other("the writer died");
                Err(Error::Io { what: "write files in", path: dir.to_owned(), source })
            })?;
        }
        Ok(())
    })
}

/// Writes a file in one step, so that a crash leaves the old one or the new one.
fn write(dir: &Path, name: &str, text: &str) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let (path, fresh) = (dir.join(name), dir.join(format!("{name}.new")));
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    };
    let options = &mut std::fs::OpenOptions::new();
    let mut file =
        options.create(true).write(true).truncate(true).mode(0o600).open(&fresh).map_err(io("create", &fresh))?;
    file.write_all(text.as_bytes()).map_err(io("write", &fresh))?;
    file.sync_data().map_err(io("sync", &fresh))?;
    std::fs::rename(&fresh, &path).map_err(io("replace", &path))
}
