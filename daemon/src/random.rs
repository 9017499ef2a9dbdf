//! Secrets are drawn from the operating system.

use rand::TryRngCore as _;
use rand::rngs::OsRng;
use tandemfs::{Error, Result};

/// Random bytes from the operating system.
///
/// # Errors
/// `Internal` if it gives none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Error::internal("the system gives no randomness").because(error))?;
    Ok(bytes)
}
