//! The host's keys: those of its settings, and those that are made, revoked and rotated while it runs.

use super::Tenant;
use super::secret::{self, Hash};

use crate::store::{Store, StoreError};
use crate::tier::{Tier, Tiers};
use podflare_api::id::KeyId;
use podflare_api::key::{KEY_NAME_LEN_MAX, KeyCreated, KeyView};
use rusqlite::params;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keys that a host has at most, revoked ones included.
const KEYS_MAX: usize = 10_000;

const SCHEME: &str = "Bearer ";

/// What a host is told of its keys at its start.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Keys of the settings.
    pub keys: Vec<Secret>,
    /// The tier of those; without one they have the host's own limits.
    pub tier: Option<String>,
    /// The operator's own.
    pub admin: Option<Secret>,
    /// Let everybody in, whatever keys there are.
    pub open_to_all: bool,
}

/// Something that stays out of logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

#[derive(Debug)]
pub struct Keys {
    store: Store,
    tiers: Tiers,
    operator: Tenant,
    admin: Option<Hash>,
    /// Of the settings.
    fixed: Vec<(Hash, Tenant)>,
    /// A plain mutex: held for look-ups and swaps, never across an await.
    made: Mutex<HashMap<KeyId, Entry>>,
    /// Makes changes come one after the other.
    changing: tokio::sync::Mutex<()>,
    open_to_all: bool,
    /// There is no key yet.
    keyless: AtomicBool,
}

#[derive(Debug, Clone)]
struct Entry {
    view: KeyView,
    hash: Hash,
    /// None if its tier is not among the host's any more.
    tenant: Option<Tenant>,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("missing Authorization: Bearer <key>")]
    Missing,
    #[error("invalid api key")]
    Invalid,
}

/// Why the keys of a host cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("Could not read the keys")]
    Store(#[from] StoreError),
    #[error("The host's keys are of the tier {tier:?}, which is none of its: {known}")]
    Tier { tier: String, known: String },
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("there is no tier {tier:?}; this host has: {known}")]
    Tier { tier: String, known: String },
    #[error("the name has {len} characters; the most is {KEY_NAME_LEN_MAX}")]
    Name { len: usize },
    #[error("key not found")]
    Unknown,
    #[error("the host has {KEYS_MAX} keys, revoked ones included; that is the most")]
    TooMany,
    #[error("Could not make a random key")]
    Random(#[source] getrandom::Error),
    #[error("Could not keep the key; nothing has changed")]
    Store(#[from] StoreError),
}

impl Keys {
    /// Reads the keys that were made. As long as there is none at all, everybody is let in as the operator: the caller
    /// decides whether that may be.
    pub fn load(store: Store, tiers: Tiers, known: Known) -> Result<Keys, KeysError> {
        let tier = match &known.tier {
            Some(name) => Some(
                tiers
                    .find(name)
                    .ok_or_else(|| KeysError::Tier { tier: name.clone(), known: list(&tiers) })?,
            ),
            None => None,
        };
        let of_setting =
            |Secret(key): &Secret| (Hash::of(key), Tenant::of_key(secret::id_of_setting(key), tier.clone()));
        let rows = store.run_blocking(read_all)?;
        let made: HashMap<KeyId, Entry> =
            rows.into_iter().map(|row| (row.view.id.clone(), row.entry(&tiers))).collect();
        let has_good = made.values().any(|entry| entry.view.revoked_at_ms.is_none());
        Ok(Keys {
            store,
            tiers,
            operator: Tenant::operator(),
            admin: known.admin.map(|Secret(key)| Hash::of(&key)),
            fixed: known.keys.iter().map(of_setting).collect(),
            made: Mutex::new(made),
            changing: tokio::sync::Mutex::default(),
            open_to_all: known.open_to_all,
            keyless: AtomicBool::new(known.keys.is_empty() && !has_good),
        })
    }

    /// Whether anyone is let in, as the operator. It ends with the first key, unless that is what was asked for.
    pub fn is_open(&self) -> bool {
        self.open_to_all || self.keyless.load(Ordering::Relaxed)
    }

    /// Who the header `Authorization` is of.
    pub fn authenticate(&self, header: Option<&str>) -> Result<Tenant, AuthError> {
        if self.is_open() {
            return Ok(self.operator.clone());
        }
        let (scheme, key) =
            header.and_then(|header| header.split_at_checked(SCHEME.len())).ok_or(AuthError::Missing)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(AuthError::Missing);
        }
        let key = key.trim();
        if key.len() > secret::LEN_MAX {
            return Err(AuthError::Invalid);
        }
        self.find(key).ok_or(AuthError::Invalid)
    }

    fn find(&self, key: &str) -> Option<Tenant> {
        let hash = Hash::of(key);
        if self.admin.is_some_and(|admin| admin.is(&hash)) {
            return Some(self.operator.clone());
        }
        let made = secret::id_in(key).and_then(|id| {
            let made = self.lock();
            let entry = made.get(&id).filter(|entry| entry.hash.is(&hash))?;
            entry.tenant.clone().filter(|_| entry.view.revoked_at_ms.is_none())
        });
        // All of them, so that the time tells nothing of which one was nearly right.
        let fixed = self.fixed.iter().fold(
            None,
            |found, (candidate, tenant)| {
                if candidate.is(&hash) { Some(tenant) } else { found }
            },
        );
        made.or_else(|| fixed.cloned())
    }

    pub async fn create(
        &self,
        tier: &str,
        name: Option<String>,
        now_ms: u64,
    ) -> Result<KeyCreated, KeyError> {
        if let Some(len) =
            name.as_ref().map(|name| name.chars().count()).filter(|len| *len > KEY_NAME_LEN_MAX)
        {
            return Err(KeyError::Name { len });
        }
        let found = self
            .tiers
            .find(tier)
            .ok_or_else(|| KeyError::Tier { tier: tier.to_owned(), known: list(&self.tiers) })?;
        let _changing = self.changing.lock().await;
        if self.lock().len() >= KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        let id = KeyId::random();
        let key = secret::make(&id).map_err(KeyError::Random)?;
        let hash = Hash::of(&key);
        let view = KeyView {
            id: id.clone(),
            name,
            tier: tier.to_owned(),
            created_at_ms: now_ms,
            revoked_at_ms: None,
        };
        let row = view.clone();
        self.store.run(move |db| insert(db, &row, &hash)).await?;
        let tenant = Some(Tenant::of_key(id.clone(), Some(found)));
        self.lock().insert(id.clone(), Entry { view: view.clone(), hash, tenant });
        self.keyless.store(false, Ordering::Relaxed);
        tracing::info!(%id, tier, "Made a key");
        Ok(KeyCreated { key, view })
    }

    /// Oldest first.
    pub fn list(&self) -> Vec<KeyView> {
        let mut views: Vec<KeyView> = self.lock().values().map(|entry| entry.view.clone()).collect();
        views.sort_by(|a, b| (a.created_at_ms, &a.id).cmp(&(b.created_at_ms, &b.id)));
        views
    }

    /// It lets nobody in any more. What runs with it runs on until its own end.
    pub async fn revoke(&self, id: &str, now_ms: u64) -> Result<(), KeyError> {
        let _changing = self.changing.lock().await;
        let id = self.known(id)?;
        let row = id.clone();
        let revoke = move |db: &rusqlite::Transaction<'_>| {
            let revoke = "UPDATE keys SET revoked_at_ms = ?2 WHERE id = ?1 AND revoked_at_ms IS NULL";
            db.execute(revoke, params![row.as_str(), now_ms])
        };
        self.store.run(revoke).await?;
        if let Some(entry) = self.lock().get_mut(&id) {
            entry.view.revoked_at_ms.get_or_insert(now_ms);
        }
        tracing::info!(%id, "Revoked a key");
        Ok(())
    }

    /// A new secret for it; the former one lets nobody in any more. What it has stays its own.
    pub async fn rotate(&self, id: &str) -> Result<KeyCreated, KeyError> {
        let _changing = self.changing.lock().await;
        let id = self.known(id)?;
        let key = secret::make(&id).map_err(KeyError::Random)?;
        let hash = Hash::of(&key);
        let row = id.clone();
        let rotate = move |db: &rusqlite::Transaction<'_>| {
            db.execute("UPDATE keys SET hash = ?2 WHERE id = ?1", params![row.as_str(), hash.as_bytes()])
        };
        self.store.run(rotate).await?;
        let mut made = self.lock();
        let entry = made.get_mut(&id).ok_or(KeyError::Unknown)?;
        entry.hash = hash;
        tracing::info!(%id, "Rotated a key");
        Ok(KeyCreated { key, view: entry.view.clone() })
    }

    /// The tenant that has this key's sandboxes, also where it is revoked.
    pub fn tenant(&self, id: Option<&KeyId>) -> Option<Tenant> {
        let Some(id) = id else { return Some(self.operator.clone()) };
        let fixed =
            || self.fixed.iter().map(|(_, tenant)| tenant).find(|tenant| tenant.key() == Some(id)).cloned();
        self.lock().get(id).and_then(|entry| entry.tenant.clone()).or_else(fixed)
    }

    /// One that is good.
    fn known(&self, id: &str) -> Result<KeyId, KeyError> {
        let id = id.parse().map_err(|_| KeyError::Unknown)?;
        let is_good = self.lock().get(&id).is_some_and(|entry| entry.view.revoked_at_ms.is_none());
        if is_good { Ok(id) } else { Err(KeyError::Unknown) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KeyId, Entry>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Row {
    view: KeyView,
    hash: Hash,
}

impl Row {
    fn entry(self, tiers: &Tiers) -> Entry {
        let Row { view, hash } = self;
        let tier: Option<Arc<Tier>> = tiers.find(&view.tier);
        if tier.is_none() && view.revoked_at_ms.is_none() {
            tracing::warn!(id = %view.id, tier = view.tier, "A key lets nobody in: its tier is none of the host's");
        }
        let tenant = tier.map(|tier| Tenant::of_key(view.id.clone(), Some(tier)));
        Entry { view, hash, tenant }
    }
}

fn read_all(db: &rusqlite::Transaction<'_>) -> rusqlite::Result<Vec<Row>> {
    let mut select = db.prepare("SELECT id, name, tier, hash, created_at_ms, revoked_at_ms FROM keys")?;
    let rows = select.query_map([], |row| {
        let (id, hash): (String, Vec<u8>) = (row.get(0)?, row.get(3)?);
        let (Ok(id), Some(hash)) = (id.parse::<KeyId>(), Hash::from_bytes(&hash)) else { return Ok(None) };
        let view = KeyView {
            id,
            name: row.get(1)?,
            tier: row.get(2)?,
            created_at_ms: row.get(4)?,
            revoked_at_ms: row.get(5)?,
        };
        Ok(Some(Row { view, hash }))
    })?;
    let rows: Vec<Option<Row>> = rows.collect::<rusqlite::Result<_>>()?;
    Ok(rows.into_iter().flatten().collect())
}

fn insert(db: &rusqlite::Transaction<'_>, view: &KeyView, hash: &Hash) -> rusqlite::Result<usize> {
    let insert = "INSERT INTO keys (id, name, tier, hash, created_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
    db.execute(insert, params![view.id.as_str(), view.name, view.tier, hash.as_bytes(), view.created_at_ms])
}

fn list(tiers: &Tiers) -> String {
    tiers.names().collect::<Vec<_>>().join(", ")
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(store: &Store, known: Known) -> Keys {
        Keys::load(store.clone(), Tiers::read(None).unwrap(), known).unwrap()
    }

    fn secrets(keys: &[&str]) -> Vec<Secret> {
        keys.iter().map(|key| Secret((*key).to_owned())).collect()
    }

    fn bearer(key: &str) -> String {
        format!("Bearer {key}")
    }

    #[tokio::test]
    async fn only_a_whole_key_is_let_in() {
        let store = Store::in_memory().unwrap();
        let known = Known { keys: secrets(&["pf_live_one", "pf_live_two"]), ..Known::default() };
        let keys = keys(&store, known);
        let made = keys.create("pro", None, 1).await.unwrap().key;
        for good in [bearer("pf_live_two"), "bearer pf_live_one".to_owned(), bearer(&made)] {
            assert!(!keys.authenticate(Some(&good)).unwrap().is_operator(), "{good}");
        }
        let [shorter, longer] = [&made[..made.len() - 1], &format!("{made}0")].map(bearer);
        for wrong in [&shorter, &longer, "Bearer pf_live_on", "Bearer ", &bearer(&"x".repeat(1000))] {
            assert!(matches!(keys.authenticate(Some(wrong)), Err(AuthError::Invalid)), "{wrong}");
        }
        for missing in [None, Some("Basic pf_live_one"), Some(""), Some("pf_live_one"), Some("ééééé")] {
            assert!(matches!(keys.authenticate(missing), Err(AuthError::Missing)), "{missing:?}");
        }
    }

    #[tokio::test]
    async fn a_host_without_keys_is_open_until_there_is_one() {
        let store = Store::in_memory().unwrap();
        let keys = keys(&store, Known::default());
        assert!(keys.authenticate(None).unwrap().is_operator());
        let created = keys.create("free", Some("laptop".into()), 7).await.unwrap();
        assert!(matches!(keys.authenticate(None), Err(AuthError::Missing)));
        // The last one revoked opens nothing.
        keys.revoke(created.view.id.as_str(), 8).await.unwrap();
        assert!(matches!(keys.authenticate(Some(&bearer(&created.key))), Err(AuthError::Invalid)));
        assert_eq!(keys.list()[0].revoked_at_ms, Some(8));
        assert!(matches!(keys.rotate(created.view.id.as_str()).await, Err(KeyError::Unknown)));
    }

    #[tokio::test]
    async fn a_host_that_is_to_be_open_to_all_stays_so() {
        let store = Store::in_memory().unwrap();
        let keys = keys(&store, Known { open_to_all: true, ..Known::default() });
        keys.create("free", None, 7).await.unwrap();
        assert!(keys.authenticate(None).unwrap().is_operator());
    }

    #[tokio::test]
    async fn a_rotated_key_is_the_same_tenant_with_another_secret() {
        let store = Store::in_memory().unwrap();
        let keys = keys(&store, Known::default());
        let first = keys.create("pro", None, 1).await.unwrap();
        let tenant = keys.authenticate(Some(&bearer(&first.key))).unwrap();
        let second = keys.rotate(first.view.id.as_str()).await.unwrap();
        assert!(matches!(keys.authenticate(Some(&bearer(&first.key))), Err(AuthError::Invalid)));
        let same = keys.authenticate(Some(&bearer(&second.key))).unwrap();
        assert!(tenant.sees(&same) && same.key() == Some(&first.view.id));
    }

    #[tokio::test]
    async fn keys_outlive_the_host_as_hashes() {
        let store = Store::in_memory().unwrap();
        let former = keys(&store, Known::default());
        let good = former.create("scale", None, 1).await.unwrap();
        let revoked = former.create("pro", None, 2).await.unwrap();
        former.revoke(revoked.view.id.as_str(), 3).await.unwrap();
        let now = keys(&store, Known::default());
        assert!(!now.is_open());
        assert_eq!(now.authenticate(Some(&bearer(&good.key))).unwrap().tier().unwrap().sandboxes_max, 500);
        assert!(now.authenticate(Some(&bearer(&revoked.key))).is_err());
        let kept: Vec<u8> =
            store.run(|db| db.query_row("SELECT hash FROM keys", [], |row| row.get(0))).await.unwrap();
        assert!(!good.key.as_bytes().windows(8).any(|part| kept.windows(8).any(|other| part == other)));
        assert!(!format!("{good:?} {now:?}").contains(&good.key));
    }

    #[tokio::test]
    async fn the_operators_key_lets_in_the_operator() {
        let store = Store::in_memory().unwrap();
        let admin = Some(Secret("pf_admin_x".into()));
        let keys = keys(
            &store,
            Known { keys: secrets(&["pf_live_a"]), admin, tier: Some("pro".into()), open_to_all: false },
        );
        assert!(keys.authenticate(Some("Bearer pf_admin_x")).unwrap().is_operator());
        assert_eq!(keys.authenticate(Some("Bearer pf_live_a")).unwrap().tier().unwrap().sandboxes_max, 50);
        let unknown = keys.create("gold", None, 1).await.unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "there is no tier \"gold\"; this host has: enterprise, free, pro, scale"
        );
    }
}
