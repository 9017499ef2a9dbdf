//! How a [`Key`] is described in the OpenAPI document.
#![expect(unused_qualifications, reason = "in what the derive makes of tuples")]

use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::record::Key;
use crate::id::Ino;
use crate::name::TextOrBytes;

// utoipa tells the types in a tuple apart, but not those of several fields of a variant.
/// Names a record of a volume.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its description is used")]
enum DescribedKey {
    /// What the volume uses.
    Usage,
    /// An inode.
    Inode(Ino),
    /// An entry: directory, name.
    Entry((Ino, TextOrBytes)),
    /// A chunk: file, number of the chunk.
    Chunk((Ino, u64)),
    /// The value of an extended attribute: inode, attribute name.
    Xattr((Ino, TextOrBytes)),
    /// A link beside the first one: inode, directory, name. Its record is empty.
    Link((Ino, Ino, TextOrBytes)),
    /// An inode without links that waits to be reaped. Its record is empty.
    Orphan(Ino),
}

impl PartialSchema for Key {
    fn schema() -> RefOr<Schema> {
        DescribedKey::schema()
    }
}

impl ToSchema for Key {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        DescribedKey::schemas(schemas);
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, PartialSchema};

    #[test]
    fn each_part_of_a_key_has_a_type_of_its_own() {
        let schema = serde_json::to_value(Key::schema()).unwrap();
        for (number, name, parts) in [(2, "entry", 2), (3, "chunk", 2), (4, "xattr", 2), (5, "link", 3)] {
            let tuple = &schema["oneOf"][number]["properties"][name];
            let types = tuple["prefixItems"].as_array().map(Vec::len);
            assert_eq!((types, &tuple["items"]), (Some(parts), &serde_json::Value::Bool(false)), "{tuple}");
        }
    }
}
