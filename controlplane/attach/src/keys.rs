//! Keys of encrypted volumes, from the cluster. They are asked for once and kept in memory, so that a volume is served
//! on while no node answers.

use anyhow::{Context, Result, anyhow, bail};
use basalt_api::dial::{Cluster, plain};
use basalt_api::v1::encryption_client::EncryptionClient;
use basalt_api::v1::{IssueVolumeKeyRequest, IssueVolumeKeyResponse};
use basalt_crypt::{VolumeCipher, VolumeKey};
use std::sync::Arc;
use zeroize::Zeroizing;

/// What a volume that is encrypted, and attached here, is served with.
///
/// # Errors
/// If the cluster does not give its key, or one that can not be used.
pub(crate) async fn fetch(
    cluster: &Cluster,
    request: IssueVolumeKeyRequest,
) -> Result<Arc<VolumeCipher>> {
    let asked = &request;
    let answer = cluster.call_through(|channel| {
        let request = asked.clone();
        async move { EncryptionClient::new(channel).issue_volume_key(request).await }
    });
    let answer = answer.await.map_err(|s| anyhow!("the key of {}: {}", request.name, plain(&s)))?;
    let IssueVolumeKeyResponse { cipher, key, .. } = answer;
    let key = Zeroizing::new(key);
    if cipher != VolumeCipher::NAME {
        bail!("{} is encrypted with {cipher:?}, which this program does not know", request.name);
    }
    let key = VolumeKey::new(&key).with_context(|| format!("the key of {}", request.name))?;
    Ok(cipher_with(&key))
}

/// The cipher of a volume's key, in memory that is kept to the process as far as that can be.
pub fn cipher_with(key: &VolumeKey) -> Arc<VolumeCipher> {
    let cipher = Arc::new(VolumeCipher::new(key));
    if !basalt_node::keep_private(&*cipher) {
        tracing::debug!("the memory of a key is not locked: see ulimit -l");
    }
    cipher
}
