use super::{Claims, Header, Keys, URL_SAFE_NO_PAD};
use base64::Engine as _;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;
use tandemfs::config::write_secret;

const NOW: u64 = 1_800_000_000;
const TTL: u64 = 900;
const SECRET: [u8; 32] = [7; 32];

fn keys() -> Keys {
    Keys::parse(&hex::encode(SECRET)).unwrap()
}

fn forge(header: &Header, claims: &Value) -> String {
    jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(&SECRET)).unwrap()
}

fn claims() -> Value {
    let (_, claims) = keys().sign(3, 1, NOW, TTL).unwrap();
    serde_json::to_value(claims).unwrap()
}

#[test]
fn a_token_says_what_was_signed_until_it_expires() {
    let keys = keys();
    let (token, claims) = keys.sign(3, 9, NOW, TTL).unwrap();
    assert_eq!(keys.verify(&token, NOW, TTL), Some(claims.clone()));
    assert_eq!(keys.verify(&token, NOW + TTL - 1, TTL), Some(claims));
    assert_eq!(keys.verify(&token, NOW + TTL, TTL), None);
    assert_eq!(keys.verify(&token, NOW - 60, TTL), None, "signed in the future");
}

#[test]
fn no_mutation_of_a_real_token_is_accepted() {
    let keys = keys();
    let (token, _) = keys.sign(3, 1, NOW, TTL).unwrap();
    let mut tried = 0;
    let mut refuse = |forged: String| {
        if forged != token {
            assert_eq!(keys.verify(&forged, NOW, TTL), None, "{forged}");
            tried += 1;
        }
    };
    let alphabet: Vec<char> =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars().collect();
    for at in 0..token.len() {
        refuse(token[..at].to_owned());
        refuse(token[at..].to_owned());
        refuse(format!("{}{}", &token[..at], &token[at + 1..]));
        for replacement in
            ['A', '_', '.', '=', '+', '/', ' ', '\0', 'é', alphabet[at % 64], alphabet[(at * 7 + 3) % 64]]
        {
            refuse(format!("{}{replacement}{}", &token[..at], &token[at + 1..]));
            refuse(format!("{}{replacement}{}", &token[..at], &token[at..]));
        }
    }
    // Every other spelling of the last character, whose low bits a lax decoder would ignore.
    for last in &alphabet {
        refuse(format!("{}{last}", &token[..token.len() - 1]));
    }
    refuse(format!("{token}."));
    refuse(format!("{token}.."));
    refuse(format!("{token}="));
    refuse("A".repeat(1 << 20));
    refuse(format!("{}.{}.{}", token, token, token));
    refuse(String::new());
    assert!(tried >= 1000, "{tried}");
}

#[test]
fn no_header_but_our_own_is_accepted() {
    let keys = keys();
    let (token, _) = keys.sign(3, 1, NOW, TTL).unwrap();
    let payload = token.split('.').nth(1).unwrap();
    let signature = token.split('.').nth(2).unwrap();
    for alg in ["none", "None", "nOnE", "", "HS384", "RS256", "ES256", "hs256"] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT"}).to_string());
        for end in [signature, "", "AAAA"] {
            assert_eq!(keys.verify(&format!("{header}.{payload}.{end}"), NOW, TTL), None);
        }
    }
    // Signed with the right key, but with another header: what B2 and B3 of the security table ask for.
    for alg in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let mut header = Header::new(alg);
        assert_eq!(keys.verify(&forge(&header, &claims()), NOW, TTL), None, "without our key's name");
        for kid in ["../../dev/null", "' or 1=1 --", ""] {
            header.kid = Some(kid.to_owned());
            header.jku = Some("http://127.0.0.1:1/keys".to_owned());
            header.x5u = Some("file:///etc/passwd".to_owned());
            assert_eq!(keys.verify(&forge(&header, &claims()), NOW, TTL), None);
        }
    }
}

#[test]
fn only_exactly_our_claims_are_accepted() {
    let keys = keys();
    let header = keys.keys[0].header.clone();
    assert!(keys.verify(&forge(&header, &claims()), NOW, TTL).is_some());
    let changed = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        claims
    };
    let mut bad = vec![
        changed("exp", json!(NOW)),
        changed("exp", json!((NOW + 60).to_string())),
        changed("exp", json!(1e300)),
        changed("exp", json!(-1)),
        changed("exp", json!(253_402_300_799_u64)),
        changed("iat", json!(253_402_300_799_u64)),
        changed("nbf", json!(NOW + 60)),
        changed("nbf", json!(NOW - 60)),
        changed("aud", json!("another service")),
        changed("aud", json!(["tandemfs:api"])),
        changed("iss", json!("somebody else")),
        changed("sub", json!(3)),
        changed("role", json!("admin")),
        changed("ver", json!("1")),
    ];
    for name in ["iss", "aud", "sub", "iat", "exp", "jti", "ver"] {
        let mut without = claims();
        without.as_object_mut().unwrap().remove(name);
        bad.push(without);
    }
    let mut nested = json!(0);
    for _ in 0..100 {
        nested = json!([nested]);
    }
    bad.push(changed("sub", nested));
    for claims in bad {
        assert_eq!(keys.verify(&forge(&header, &claims), NOW, TTL), None, "{claims}");
    }
}

#[test]
fn an_old_key_verifies_until_it_is_taken_out() {
    let (token, claims): (String, Claims) = keys().sign(3, 1, NOW, TTL).unwrap();
    let both = Keys::parse(&format!("{}\n{}\n", hex::encode([9; 32]), hex::encode(SECRET))).unwrap();
    assert_eq!(both.verify(&token, NOW, TTL), Some(claims));
    let (new, _) = both.sign(3, 1, NOW, TTL).unwrap();
    assert_eq!(keys().verify(&new, NOW, TTL), None);
    let rotated = Keys::parse(&hex::encode([9; 32])).unwrap();
    assert_eq!(rotated.verify(&token, NOW, TTL), None);
    assert!(rotated.verify(&new, NOW, TTL).is_some());
}

#[test]
fn a_key_file_is_private_and_its_keys_are_long() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/jwt.key");
    assert!(Keys::read(&path).unwrap().is_none());
    let first = Keys::draw().unwrap();
    let (token, _) = first.sign(3, 1, NOW, TTL).unwrap();
    write_secret(&path, first.text().as_bytes()).unwrap();
    assert!(Keys::read(&path).unwrap().unwrap().verify(&token, NOW, TTL).is_some(), "the key is kept");

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(Keys::read(&path).unwrap_err().subject().contains("chmod 600"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    for bad in ["changeme", "", "00", &"0".repeat(62), &"x".repeat(64)] {
        std::fs::write(&path, bad).unwrap();
        assert!(Keys::read(&path).is_err(), "{bad:?}");
    }
}

#[test]
fn a_replaced_key_verifies_until_its_last_token_expires_and_a_dropped_one_not_at_all() {
    let first = keys();
    let (old, claims) = first.sign(3, 1, NOW, TTL).unwrap();
    let second = first.rotated(NOW + 10, TTL).unwrap();
    let (new, _) = second.sign(3, 1, NOW + 10, TTL).unwrap();
    assert_ne!(second.key_of(&old), second.key_of(&new));
    assert_eq!(second.verify(&old, NOW + 10, TTL), Some(claims));
    assert!(second.verify(&new, NOW + 10, TTL).is_some());
    // Also for who reads the file that this is written to.
    let second = Keys::parse(&second.text()).unwrap();
    let ids: Vec<_> = second.list(NOW + 10, TTL).map(|(id, replaced)| (id.to_owned(), replaced)).collect();
    assert_eq!((ids.len(), ids[0].1, ids[1].1), (2, None, Some(NOW + 10)));

    // Whoever has the old key cannot sign with it for ever.
    let late = NOW + 10 + TTL + 6;
    let header = Header { kid: Some(ids[1].0.clone()), ..Header::new(Algorithm::HS256) };
    let mut forged = claims_at(late);
    assert!(first.verify(&forge(&header, &forged), late, TTL).is_some());
    assert_eq!(second.verify(&forge(&header, &forged), late, TTL), None);
    forged["iat"] = json!(NOW + 5);
    assert_eq!(second.verify(&forge(&header, &forged), late, TTL), None);
    assert_eq!(second.rotated(late, TTL).unwrap().list(late, TTL).count(), 2, "the first is left out");

    let without_old = second.without(&ids[1].0, NOW + 20, TTL).unwrap();
    assert_eq!(without_old.verify(&old, NOW + 20, TTL), None);
    assert!(without_old.verify(&new, NOW + 20, TTL).is_some());
    let without_new = second.without(&ids[0].0, NOW + 20, TTL).unwrap();
    assert_eq!(without_new.verify(&new, NOW + 20, TTL), None);
    assert!(without_new.verify(&old, NOW + 20, TTL).is_some());
    let (newest, _) = without_new.sign(3, 1, NOW + 20, TTL).unwrap();
    assert!(without_new.verify(&newest, NOW + 20, TTL).is_some());
    assert!(second.without("no such", NOW, TTL).is_err());

    let mut many = keys();
    let refused = (0..20).find_map(|_| many.rotated(NOW, TTL).map(|next| many = next).err());
    assert_eq!(refused.unwrap().kind(), tandemfs::ErrorKind::Busy, "no live key is thrown out by others");
    for bad in ["replaced", "replaced=x", "x", "replaced=1 2"] {
        assert!(Keys::parse(&format!("{} {bad}", hex::encode(SECRET))).is_err(), "{bad}");
    }
}

fn claims_at(now: u64) -> Value {
    let (_, claims) = keys().sign(3, 1, now, TTL).unwrap();
    serde_json::to_value(claims).unwrap()
}
