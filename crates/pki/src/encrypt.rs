use pkcs8::der::pem::PemLabel;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};

use crate::{Error, PrivateKey, Secret};

/// Whether `pem` is a key behind a passphrase.
#[must_use]
pub fn is_encrypted(pem: &str) -> bool {
    pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
}

/// `key` behind `passphrase`, as PKCS#8 PEM that `openssl pkcs8` reads: PBES2 with scrypt (N=2¹⁵, r=8, p=1) and
/// AES-256-CBC (RFC 8018, RFC 7914).
///
/// # Errors
///
/// When the system has no randomness.
pub fn encrypt_key(key: &PrivateKey, passphrase: &Secret) -> Result<String, Error> {
    let der = key.to_der();
    let info = PrivateKeyInfoRef::try_from(der.as_slice()).map_err(|e| Error::make("encrypted key", e))?;
    let sealed = info.encrypt(passphrase.expose()).map_err(|e| Error::make("encrypted key", e))?;
    let pem = sealed
        .to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)
        .map_err(|e| Error::make("encrypted key", e))?;
    Ok(pem.to_string())
}

/// The key behind `passphrase`.
///
/// # Errors
///
/// [`Error::Passphrase`] when it does not open it, [`Error::Read`] when `pem` is no encrypted PKCS#8 key.
pub fn decrypt_key(pem: &str, passphrase: &Secret) -> Result<PrivateKey, Error> {
    let (_, sealed) = SecretDocument::from_pem(pem).map_err(|e| Error::read("encrypted key", e))?;
    let info = EncryptedPrivateKeyInfoRef::try_from(sealed.as_bytes()).map_err(|e| Error::read("encrypted key", e))?;
    let opened = info.decrypt(passphrase.expose()).map_err(|_| Error::Passphrase)?;
    let plain = opened.to_pem("PRIVATE KEY", LineEnding::LF).map_err(|e| Error::read("encrypted key", e))?;
    PrivateKey::from_pem(&plain)
}
