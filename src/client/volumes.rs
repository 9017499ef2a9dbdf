//! Shared volumes and their grants.

use super::Client;
use super::transport::Call;
use crate::Result;
use crate::api::volumes::{ChangeVolume, Grant, GrantPage, NewGrant, NewVolume, Volume, VolumePage};

/// Each method's errors are the daemon's, or `Unavailable` when it could not be asked.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
impl Client {
    /// A page of the shared volumes: all for admins, for others those that they are granted.
    pub async fn list_volumes(&self, cursor: Option<&str>) -> Result<VolumePage> {
        self.transport
            .value(Call::get(&["v1", "volumes"]).query("limit", Some(1000)).query("cursor", cursor))
            .await
    }

    /// A shared volume.
    pub async fn volume(&self, name: &str) -> Result<Volume> {
        self.transport.value(Call::get(&["v1", "volumes", name])).await
    }

    /// Makes a shared volume (admins).
    pub async fn create_volume(&self, volume: &NewVolume) -> Result<Volume> {
        self.transport.value(Call::post(&["v1", "volumes"]).body(volume)?).await
    }

    /// Changes a shared volume (admins).
    pub async fn change_volume(&self, name: &str, change: &ChangeVolume) -> Result<Volume> {
        self.transport.value(Call::patch(&["v1", "volumes", name]).body(change)?).await
    }

    /// Removes a shared volume with all that is in it (admins).
    pub async fn delete_volume(&self, name: &str) -> Result<()> {
        self.transport.done(Call::delete(&["v1", "volumes", name])).await
    }

    /// A page of a volume's grants (admins).
    pub async fn list_grants(&self, volume: &str, cursor: Option<&str>) -> Result<GrantPage> {
        let call = Call::get(&["v1", "volumes", volume, "grants"]);
        self.transport.value(call.query("limit", Some(1000)).query("cursor", cursor)).await
    }

    /// Grants a user a volume, or changes the grant (admins).
    pub async fn grant(&self, volume: &str, username: &str, grant: &NewGrant) -> Result<Grant> {
        self.transport.value(Call::put(&["v1", "volumes", volume, "grants", username]).body(grant)?).await
    }

    /// Takes a grant away (admins).
    pub async fn revoke_grant(&self, volume: &str, username: &str) -> Result<()> {
        self.transport.done(Call::delete(&["v1", "volumes", volume, "grants", username])).await
    }
}
