//! `tandem put`, `tandem get`

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use tandemfs::api::files::{File as RemoteFile, FileDetail};
use tandemfs::client::Upload;
use tandemfs::name::Name;
use tandemfs::tree::RenameMode;
use tandemfs::{Error, ErrorKind, Result};
use tokio_util::io::ReaderStream;

use super::failure::{Failure, Outcome, Several};
use super::tree::{self, Tree};
use super::{Context, files, output};

/// How much of a local file is read at once.
const PIECE: usize = 256 << 10;

/// `tandem put`
pub(super) async fn put(context: &Context, mut paths: Vec<PathBuf>, force: bool) -> Outcome {
    let remote = if paths.len() > 1 { paths.pop() } else { None };
    let remote = match remote {
        Some(path) => path
            .into_os_string()
            .into_string()
            .map_err(|path| Failure::Usage(format!("{} is not UTF-8", path.to_string_lossy())))?,
        None => "/".to_owned(),
    };
    let into = remote.is_empty()
        || remote.ends_with('/')
        || paths.len() > 1
        || is_directory(context, &remote).await?;
    let (mut stored, mut several) = (Vec::new(), Several::default());
    for local in &paths {
        let outcome = async {
            let path = if into { join(&remote, &own_name(local)?) } else { remote.clone() };
            Ok(put_one(context, local, path, force).await?)
        };
        match outcome.await {
            Ok(file) if context.json => stored.push(file),
            Ok(file) => {
                output::print(&format!("{}  {}", output::escape(&file.file_id), output::escape(&file.path)))?
            }
            Err(failure) => several.note(Err(failure))?,
        }
    }
    match stored.as_slice() {
        [file] if paths.len() == 1 => output::print_json(file)?,
        _ if context.json => output::print_json(&stored)?,
        _ => {}
    }
    several.finish()
}

async fn is_directory(context: &Context, path: &str) -> Outcome<bool> {
    tree::with(context, true, async |tree| {
        Ok(tree.find(path).await?.is_some_and(|inode| inode.is_directory()))
    })
    .await
}

fn own_name(local: &Path) -> Outcome<String> {
    let name = local.file_name().filter(|_| local != Path::new("-"));
    match name.map(|name| name.to_str()) {
        Some(Some(name)) => Ok(name.to_owned()),
        Some(None) => {
            Err(Failure::Usage(format!("the name of {} is not UTF-8; say the remote path", local.display())))
        }
        None => Err(Failure::Usage(format!("{} has no name; say the remote path", local.display()))),
    }
}

fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

/// Uploads one file. To replace one, the new one is uploaded beside it and then takes its name.
async fn put_one(context: &Context, local: &Path, path: String, force: bool) -> Result<RemoteFile> {
    let path = match path.strip_prefix('/') {
        Some(_) => path,
        None => format!("/{path}"),
    };
    let upload = async |path: String| {
        let (file, size) = open(local)?;
        let bar = output::bytes_bar(&local.display().to_string(), size, context.json);
        let uploaded = context.client.upload(&Upload { path, size }, pieces(file, bar.clone())).await;
        bar.finish_and_clear();
        uploaded
    };
    if !force
        || tree::with(context, true, async |tree| Ok(tree.find(&path).await?))
            .await
            .map_err(error_of)?
            .is_none()
    {
        return upload(path).await;
    }
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let beside = join(directory, &format!(".tandem-put-{:016x}", rand::random::<u64>()));
    let mut file = upload(beside.clone()).await?;
    let replace = async |tree: &mut Tree| {
        if tree.find(&path).await?.is_some_and(|inode| inode.is_directory()) {
            return Err(Error::is_a_directory(&path).into());
        }
        Ok(files::rename_in(tree, &beside, &path, RenameMode::Replace).await?)
    };
    if let Err(failure) = tree::with(context, false, replace).await {
        let _ = context.client.delete_file(&file.file_id).await;
        return Err(error_of(failure));
    }
    file.name = path.rsplit('/').next().unwrap_or_default().to_owned();
    file.path = path;
    Ok(file)
}

fn error_of(failure: Failure) -> Error {
    match failure {
        Failure::Failed(error) => error,
        Failure::Usage(text) => Error::invalid(text),
        Failure::Printed(_) | Failure::ClosedPipe | Failure::Interrupted => Error::internal(""),
    }
}

/// A local file, and its size if it has one.
fn open(local: &Path) -> Result<(File, Option<u64>)> {
    let about = |error: std::io::Error| Error::new(Error::from(error).kind(), local.display().to_string());
    let file = if local == Path::new("-") {
        File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(about)?)
    } else {
        File::open(local).map_err(about)?
    };
    let metadata = file.metadata().map_err(about)?;
    if metadata.is_dir() {
        return Err(Error::is_a_directory(local.display().to_string()));
    }
    // Standard input may be a file that has been read up to somewhere, so its size says nothing.
    let size = (metadata.is_file() && local != Path::new("-")).then_some(metadata.len());
    Ok((file, size))
}

fn pieces(file: File, bar: ProgressBar) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    ReaderStream::with_capacity(tokio::fs::File::from_std(file), PIECE).map(move |piece| {
        let piece = piece?;
        bar.inc(piece.len() as u64);
        Ok(piece)
    })
}

/// `tandem get`
pub(super) async fn get(context: &Context, remote: &str, local: Option<PathBuf>) -> Outcome {
    let found = tree::with(context, true, async |tree| {
        Ok(tree.find(remote).await?.map(|inode| (tree.file_id(inode.ino).to_string(), inode)))
    })
    .await?;
    let file_id = match found {
        Some((_, inode)) if inode.is_directory() => return Err(Error::is_a_directory(remote).into()),
        Some((_, inode)) if !inode.is_file() => {
            return Err(Error::invalid(format!("{remote} is not a regular file")).into());
        }
        Some((file_id, _)) => file_id,
        None => files::id_or_not_found(remote)?,
    };
    let detail = context.client.stat_file(&file_id).await?;
    if local.as_deref() == Some(Path::new("-")) {
        return fetch(context, &detail, &mut std::io::stdout().lock()).await;
    }
    let target = target(&detail, remote, local)?;
    let directory = target.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let temporary = directory.join(format!(".tandem-get-{:016x}", rand::random::<u64>()));
    let about = |error: std::io::Error| {
        Failure::Failed(Error::new(Error::from(error).kind(), target.display().to_string()))
    };
    let outcome = async {
        let mut file = File::options().write(true).create_new(true).open(&temporary).map_err(about)?;
        fetch(context, &detail, &mut file).await?;
        file.sync_all().and_then(|()| std::fs::rename(&temporary, &target)).map_err(about)
    };
    let outcome = tokio::select! {
        outcome = outcome => outcome,
        // Nothing of an interrupted download is left behind.
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    };
    if let Err(failure) = outcome {
        let _ = std::fs::remove_file(&temporary);
        return Err(failure);
    }
    let text = format!("{}  {}", output::size(detail.file.size), output::escape(&target.to_string_lossy()));
    context.show(&detail, |_| text)
}

/// Where a file is to be stored. Its name comes from the daemon, which is not to say where to write.
fn target(detail: &FileDetail, remote: &str, local: Option<PathBuf>) -> Outcome<PathBuf> {
    let local = local.unwrap_or_else(|| PathBuf::from("."));
    if !local.is_dir() {
        return Ok(local);
    }
    let given = remote.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let name = if remote.parse::<tandemfs::id::FileId>().is_ok() { &detail.file.name } else { given };
    let name =
        Name::new(name).map_err(|_| Error::invalid("the file has no usable name; say the local one"))?;
    Ok(local.join(std::ffi::OsStr::from_bytes(name.as_bytes())))
}

/// Downloads a file and checks that it is whole.
async fn fetch(context: &Context, detail: &FileDetail, out: &mut impl Write) -> Outcome {
    let file = &detail.file;
    let mut download = context.client.download(&file.file_id).await?;
    let bar = output::bytes_bar(&file.name, download.size, context.json);
    let mut hasher = Sha256::new();
    while let Some(piece) = download.data.next().await {
        let piece = piece?;
        out.write_all(&piece).map_err(output::output_failed)?;
        hasher.update(&piece);
        bar.inc(piece.len() as u64);
    }
    out.flush().map_err(output::output_failed)?;
    bar.finish_and_clear();
    match &file.sha256 {
        Some(wanted) if *wanted != hex::encode(hasher.finalize()) => Err(Error::new(
            ErrorKind::Corrupt,
            format!("{} has not the SHA-256 that it should have", file.path),
        )
        .into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{join, own_name};
    use std::path::Path;

    #[test]
    fn names_and_directories() {
        assert_eq!(join("/", "a"), "/a");
        assert_eq!(join("/b/", "a"), "/b/a");
        assert_eq!(own_name(Path::new("x/y.txt")).unwrap(), "y.txt");
        assert_eq!(own_name(Path::new("-")).unwrap_err().code(), 2);
        assert_eq!(own_name(Path::new("..")).unwrap_err().code(), 2);
    }
}
