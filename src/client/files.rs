//! Files as people see them, storage and status.

use bytes::Bytes;
use futures::{Stream, StreamExt};

use super::transport::Call;
use super::{ByteStream, Client};
use crate::api::files::{File, FileDetail, FilePage, ListFiles, Status, Storage};
use crate::{Error, Result};

/// What to upload.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Where it is to be in the home volume.
    pub path: String,
    /// Its size in bytes, if known. The data must be exactly so long.
    pub size: Option<u64>,
}

/// A file's content on its way.
pub struct Download {
    /// Bytes that are to come, if the daemon said so.
    pub size: Option<u64>,
    /// The bytes. One that ends early ends with an error.
    pub data: ByteStream,
}

/// Each method's errors are the daemon's, or `Unavailable` when it could not be asked.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
impl Client {
    /// Stores a new file; `AlreadyExists` when its path is taken. An error of `data` is the error of the upload.
    pub async fn upload(
        &self,
        upload: &Upload,
        data: impl Stream<Item = Result<Bytes>> + Send + 'static,
    ) -> Result<File> {
        // The path says it all: a name in the head of a part could hold what a head cannot.
        let (fields, name) = (vec![("path", upload.path.clone())], "file".to_owned());
        self.transport
            .upload(Call::post(&["upload"]), fields, name, upload.size, exactly(upload.size, data))
            .await
    }

    /// A page of the caller's files.
    pub async fn list_files(&self, list: &ListFiles) -> Result<FilePage> {
        let call = Call::get(&["files"])
            .query("limit", list.limit)
            .query("cursor", list.cursor.as_ref())
            .query("prefix", list.prefix.as_ref());
        self.transport.value(call).await
    }

    /// A file and the places of its blocks.
    pub async fn stat_file(&self, file_id: &str) -> Result<FileDetail> {
        self.transport.value(Call::get(&["files", file_id])).await
    }

    /// A file's content.
    pub async fn download(&self, file_id: &str) -> Result<Download> {
        let (size, data) = self.transport.stream(Call::get(&["download", file_id])).await?;
        Ok(Download { size, data })
    }

    /// Removes a file.
    pub async fn delete_file(&self, file_id: &str) -> Result<()> {
        self.transport.done(Call::delete(&["files", file_id])).await
    }

    /// What the caller uses and may use.
    pub async fn storage(&self) -> Result<Storage> {
        self.transport.value(Call::get(&["storage"])).await
    }

    /// Whether all is well.
    pub async fn status(&self) -> Result<Status> {
        self.transport.value(Call::get(&["status"])).await
    }
}

/// Passes data on and makes an error of data that is shorter or longer than it was said to be.
fn exactly(
    size: Option<u64>,
    data: impl Stream<Item = Result<Bytes>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    let state = Some((Box::pin(data), size));
    futures::stream::unfold(state, |state| async {
        let (mut data, left) = state?;
        match (data.next().await, left) {
            (Some(Ok(piece)), Some(left)) => match left.checked_sub(piece.len() as u64) {
                Some(left) => Some((Ok(piece), Some((data, Some(left))))),
                None => Some((Err(Error::stale("the file has grown while it was read")), None)),
            },
            (Some(Ok(piece)), None) => Some((Ok(piece), Some((data, None)))),
            (Some(Err(error)), _) => Some((Err(error), None)),
            (None, Some(left)) if left > 0 => {
                Some((Err(Error::stale("the file has become shorter while it was read")), None))
            }
            (None, _) => None,
        }
    })
}
