//! Extended attributes.

use tandemfs::id::Ino;
use tandemfs::tree::acl::{ACCESS, DEFAULT};
use tandemfs::tree::{Credentials, Key, Mutation, Record, Want, XattrMode};
use tandemfs::{Error, Result};

use super::Fs;

/// Checks a name: of what the kernel calls `system.`, access control lists are kept.
fn check(name: &[u8]) -> Result<()> {
    if name.starts_with(b"system.") && name != ACCESS && name != DEFAULT {
        return Err(Error::unsupported(String::from_utf8_lossy(name)));
    }
    Ok(())
}

impl Fs {
    /// getxattr.
    ///
    /// # Errors
    /// `NoAttribute`, `Unsupported`, those of the daemon.
    pub async fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        check(name)?;
        self.session.ready().await?;
        let missing = || Error::no_attribute(String::from_utf8_lossy(name));
        if name == ACCESS || name == DEFAULT {
            self.session.known.give_list(ino);
        }
        if self.inode(ino).await?.xattr_bytes == 0 {
            return Err(missing());
        }
        let key = Key::Xattr(ino, name.to_vec());
        if let Some(known) = self.session.cache.get(&key) {
            return match known.as_deref() {
                Some(Record::Xattr(value)) => self.options.ids.shown_attribute(name, value.clone()),
                _ => Err(missing()),
            };
        }
        let reply = self.session.read(vec![Want::Record(key)]).await?;
        let records = reply.answers.into_iter().flat_map(|answer| answer.records);
        let mut values = records.filter_map(|(_, record)| match record {
            Some(Record::Xattr(value)) => Some(value),
            _ => None,
        });
        self.options.ids.shown_attribute(name, values.next().ok_or_else(missing)?)
    }

    /// listxattr: the names, each with a NUL after it. Only root is shown what is `trusted.` (xattr(7)).
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn list_xattrs(&self, by: Credentials, ino: Ino) -> Result<Vec<u8>> {
        self.session.ready().await?;
        if self.inode(ino).await?.xattr_bytes == 0 {
            return Ok(Vec::new());
        }
        let reply = self.session.read(vec![Want::Xattrs(ino)]).await?;
        let mut names = Vec::new();
        for (key, record) in reply.answers.into_iter().flat_map(|answer| answer.records) {
            if let (Key::Xattr(_, name), Some(_)) = (key, record)
                && (by.uid == 0 || !name.starts_with(b"trusted."))
            {
                names.extend(name);
                names.push(0);
            }
        }
        Ok(names)
    }

    /// setxattr.
    ///
    /// # Errors
    /// `Stale` for what is gone. Those of the rules and of the daemon.
    pub async fn set_xattr(
        &self,
        by: Credentials,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        check(name)?;
        self.writable()?;
        let (name, value) = (name.to_vec(), self.options.ids.attribute(name, value)?);
        let by = self.options.ids.acting(by);
        let set = Mutation::SetXattr { ino, name, value, mode, by, time: self.clock.now() };
        self.of_inode(ino, self.session.commit(vec![set], None).await).map(drop)
    }

    /// removexattr.
    ///
    /// # Errors
    /// `Stale` for what is gone. Those of the rules and of the daemon.
    pub async fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        check(name)?;
        self.writable()?;
        let remove = Mutation::RemoveXattr { ino, name: name.to_vec(), time: self.clock.now() };
        self.of_inode(ino, self.session.commit(vec![remove], None).await).map(drop)
    }
}
