//! A token that is there: its keys are found, made, used and forgotten; what goes wrong with it mends itself when it is back.
//!
//! Signing needs a session, and there are a few, so that callers do not wait for each other. When the token does not answer, all of
//! them are given up, and whoever needs it a little later begins anew: with the module as a whole, for a module keeps to itself what
//! it saw of a token.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use hoplite_host::clock;
use hoplite_host::files;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::{Settings, TokenError};

/// Sessions that are kept open. A token has a few dozen; more signatures at once wait for none of these, they open their own.
const IDLE_MAX: usize = 8;

/// A token that is away is not asked again within this time: each attempt may take its own while.
const REST: Duration = Duration::from_secs(1);

/// The curve, as a DER object identifier: P-256.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// An uncompressed point of P-256.
const POINT_BYTES: usize = 65;

/// A signature of P-256: two numbers in a row.
const SIGNATURE_BYTES: usize = 64;

/// A PKCS#11 token with a user who is logged in. Clones are the same one.
#[derive(Clone)]
pub struct Token(Arc<Shared>);

/// A P-256 key in a token. It signs there.
#[derive(Clone)]
pub struct TokenKey {
    token: Token,
    id: Vec<u8>,
    point: Vec<u8>,
    /// Where it is, as the module that runs says: valid for one of its starts.
    handle: Arc<Mutex<Option<(u64, ObjectHandle)>>>,
}

struct Shared {
    settings: Settings,
    state: Mutex<State>,
}

struct State {
    module: Option<Pkcs11>,
    idle: Vec<Session>,
    /// Grows whenever all is given up.
    start: u64,
    away: Option<Away>,
}

/// Since when the token is not to be had, and why.
struct Away {
    asked: Instant,
    problem: TokenError,
}

// === impl Token ===

impl Token {
    /// Loads the module, and logs in at the token.
    ///
    /// # Errors
    /// What is wrong with module, token or PIN.
    pub fn open(settings: &Settings) -> Result<Self, TokenError> {
        let token = Self(Arc::new(Shared {
            settings: settings.clone(),
            state: Mutex::new(State {
                module: None,
                idle: Vec::new(),
                start: 0,
                away: None,
            }),
        }));
        token.with(|_, _| Ok(()))?;
        Ok(token)
    }

    /// Why the token is away; none while it is there.
    pub fn away(&self) -> Option<String> {
        self.state().away.as_ref().map(|away| away.problem.to_string())
    }

    /// Its label.
    pub fn label(&self) -> &str {
        &self.0.settings.token
    }

    /// Whether it is there: asks it, unless that was done just now.
    pub fn look(&self) {
        // What comes of it is in `away`.
        let _ = self.with(|session, _| {
            session
                .find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)])
                .map(drop)
        });
    }

    /// Its keys with this label, in no order.
    ///
    /// # Errors
    /// The token is away.
    pub fn keys(&self, label: &str) -> Result<Vec<TokenKey>, TokenError> {
        let found = self.with(|session, start| {
            let mut found = Vec::new();
            for key in session.find_objects(&template(ObjectClass::PRIVATE_KEY, label))? {
                let Some(id) = id_of(session, key)? else { continue };
                if let Some(point) = public(session, &id)? {
                    found.push((id, point, (start, key)));
                }
            }
            Ok(found)
        })?;
        let key = |(id, point, handle)| TokenKey {
            token: self.clone(),
            id,
            point,
            handle: Arc::new(Mutex::new(Some(handle))),
        };
        Ok(found.into_iter().map(key).collect())
    }

    /// Makes one more. It cannot be read out of the token, nor be copied to another.
    ///
    /// # Errors
    /// The token is away, or does not make such keys.
    pub fn make(&self, label: &str) -> Result<TokenKey, TokenError> {
        let mut random = [0; 8];
        let no_random = |_| self.problem("the system gives no random numbers");
        SystemRandom::new().fill(&mut random).map_err(no_random)?;
        let now = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let id = [now.to_be_bytes(), random].concat();
        let (point, handle) = self.with(|session, start| {
            let common = |class| {
                let mut all = template(class, label);
                all.extend([Attribute::Token(true), Attribute::Id(id.clone())]);
                all
            };
            let mut public = common(ObjectClass::PUBLIC_KEY);
            public.extend([
                Attribute::Private(false),
                Attribute::Verify(true),
                Attribute::EcParams(P256.to_vec()),
            ]);
            let mut private = common(ObjectClass::PRIVATE_KEY);
            private.extend([
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Sign(true),
                Attribute::Decrypt(false),
                Attribute::Derive(false),
                Attribute::Unwrap(false),
            ]);
            let (public, private) = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
            Ok((point(session, public)?, (start, private)))
        })?;
        let point = point.ok_or_else(|| self.problem("it made a key that is not one of P-256"))?;
        Ok(TokenKey {
            token: self.clone(),
            id,
            point,
            handle: Arc::new(Mutex::new(Some(handle))),
        })
    }

    /// Destroys one.
    ///
    /// # Errors
    /// The token is away.
    pub fn forget(&self, key: &TokenKey) -> Result<(), TokenError> {
        self.with(|session, _| {
            for object in session.find_objects(&[Attribute::Id(key.id.clone())])? {
                session.destroy_object(object)?;
            }
            Ok(())
        })
    }

    /// Has something done in a session. Whatever fails has all be begun anew, once at once and then after a rest.
    fn with<T>(&self, work: impl Fn(&Session, u64) -> Result<T, Error>) -> Result<T, TokenError> {
        let mut is_fresh = false;
        loop {
            let (session, start) = self.session(&mut is_fresh)?;
            match work(&session, start) {
                Ok(done) => {
                    self.is_there(session, start);
                    return Ok(done);
                }
                Err(error) => {
                    // A session that has been idle may have ended with its token's last absence.
                    drop(session);
                    self.lose(start, &error, is_fresh);
                    if is_fresh {
                        return Err(self.problem(&said(&error)));
                    }
                }
            }
        }
    }

    fn session(&self, is_fresh: &mut bool) -> Result<(Session, u64), TokenError> {
        let mut state = self.state();
        if let Some(away) = &state.away
            && away.asked.elapsed() < REST
        {
            return Err(away.problem.clone());
        }
        if let Some(session) = state.idle.pop() {
            return Ok((session, state.start));
        }
        *is_fresh = true;
        let opened = self.opened(&mut state);
        opened.map(|session| (session, state.start)).inspect_err(|problem| {
            state.module = None;
            Self::note(&mut state, problem.clone());
        })
    }

    /// One more session, in which the user is logged in.
    fn opened(&self, state: &mut State) -> Result<Session, TokenError> {
        let settings = &self.0.settings;
        let module = match &state.module {
            Some(module) => module.clone(),
            None => {
                let module = load(&settings.module)?;
                state.module = Some(module.clone());
                state.start += 1;
                module
            }
        };
        let away = |error: Error| self.problem(&said(&error));
        let mut labels = Vec::new();
        for slot in module.get_slots_with_initialized_token().map_err(away)? {
            let Ok(about) = module.get_token_info(slot) else {
                continue;
            };
            if about.label() != settings.token {
                labels.push(format!("`{}`", about.label()));
                continue;
            }
            let session = module.open_rw_session(slot).map_err(away)?;
            match session.login(UserType::User, Some(&pin(settings)?)) {
                Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => return Ok(session),
                Err(error) => return Err(away(error)),
            }
        }
        let others = match labels.is_empty() {
            true => "there is none".to_owned(),
            false => format!("there are {}", labels.join(", ")),
        };
        Err(self.problem(&format!(
            "the module sees no token of this label, {others}; see that it is connected, and what `keys.token` says"
        )))
    }

    fn is_there(&self, session: Session, start: u64) {
        let mut state = self.state();
        if state.away.take().is_some() {
            tracing::info!(token = self.label(), "the PKCS#11 token is back");
        }
        if state.start == start && state.idle.len() < IDLE_MAX {
            state.idle.push(session);
        }
    }

    /// Gives up all that the module said until now.
    fn lose(&self, start: u64, error: &Error, is_away: bool) {
        let mut state = self.state();
        if state.start != start {
            return; // somebody did so
        }
        state.idle.clear();
        state.start += 1;
        if let Some(module) = state.module.take() {
            // What it says of that is of no interest: it is begun anew, or not at all.
            let _ = module.finalize();
        }
        if is_away {
            Self::note(&mut state, self.problem(&said(error)));
        }
    }

    fn note(state: &mut State, problem: TokenError) {
        if state.away.is_none() {
            tracing::error!(%problem, "nothing can be signed with the keys of the PKCS#11 token until it is back");
        }
        let asked = clock::moment();
        state.away = Some(Away { asked, problem });
    }

    fn problem(&self, problem: &str) -> TokenError {
        TokenError::Away {
            token: self.label().to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Token").field(&self.label()).finish()
    }
}

fn load(path: &PathBuf) -> Result<Pkcs11, TokenError> {
    let failed = |error: Error| TokenError::Module {
        module: path.display().to_string(),
        problem: said(&error),
    };
    let module = Pkcs11::new(path).map_err(failed)?;
    // A module may do so only when its tokens are there.
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        // Another part of this process began it.
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(module),
        Err(error) => Err(failed(error)),
    }
}

/// Read each time: it may have been changed, and is not kept in memory.
fn pin(settings: &Settings) -> Result<AuthPin, TokenError> {
    let file = &settings.pin_file;
    let bytes = Zeroizing::new(files::read_private(file).map_err(|error| TokenError::Pin(error.to_string()))?);
    let text = str::from_utf8(&bytes).map_err(|_| TokenError::Pin(format!("`{}` is no text", file.display())))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(TokenError::Pin(format!("`{}` is empty", file.display()))),
        pin => Ok(AuthPin::new(pin.into())),
    }
}

/// What people can make something of.
fn said(error: &Error) -> String {
    let remedy = match error {
        Error::Pkcs11(RvError::PinIncorrect, _) => {
            "; see what `keys.pin_file` holds: a token locks itself after a few wrong ones"
        }
        Error::Pkcs11(RvError::PinLocked, _) => "; the token's security officer can set a new one",
        Error::Pkcs11(RvError::DeviceRemoved | RvError::TokenNotPresent, _) => "; connect it",
        _ => "",
    };
    match error {
        // As the standard writes it: the library's sentences say less.
        Error::Pkcs11(code, function) => format!("{function:?} says {code:?}{remedy}"),
        other => format!("{other}{remedy}"),
    }
}

fn template(class: ObjectClass, label: &str) -> Vec<Attribute> {
    vec![
        Attribute::Class(class),
        Attribute::KeyType(KeyType::EC),
        Attribute::Label(label.as_bytes().to_vec()),
    ]
}

fn id_of(session: &Session, object: ObjectHandle) -> Result<Option<Vec<u8>>, Error> {
    let attributes = session.get_attributes(object, &[AttributeType::Id])?;
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::Id(id) => Some(id),
        _ => None,
    }))
}

/// The public half of the key with this id.
fn public(session: &Session, id: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let template = [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Id(id.to_vec())];
    match session.find_objects(&template)?.first() {
        Some(object) => point(session, *object),
        None => Ok(None),
    }
}

/// The point itself: a module gives it within a DER octet string, as it should, or without.
fn point(session: &Session, public: ObjectHandle) -> Result<Option<Vec<u8>>, Error> {
    let attributes = session.get_attributes(public, &[AttributeType::EcPoint, AttributeType::EcParams])?;
    let is_p256 = attributes.contains(&Attribute::EcParams(P256.to_vec()));
    let point = attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::EcPoint(point) => Some(point),
        _ => None,
    });
    let bare = point.map(|point| match point.as_slice() {
        [0x04, 0x41, bare @ ..] if bare.len() == POINT_BYTES => bare.to_vec(),
        _ => point,
    });
    Ok(bare.filter(|bare| is_p256 && bare.len() == POINT_BYTES && bare.first() == Some(&0x04)))
}

// === impl TokenKey ===

impl TokenKey {
    /// The public key: an uncompressed point.
    pub fn point(&self) -> &[u8] {
        &self.point
    }

    /// Why its token is away; none while it is there.
    pub fn away(&self) -> Option<String> {
        self.token.away()
    }

    /// When it was made, in seconds since 1970; 0 of one that was not made here.
    pub fn made(&self) -> u64 {
        let (when, rest) = self.id.split_at_checked(8).unwrap_or_default();
        when.try_into()
            .ok()
            .filter(|_| rest.len() == 8)
            .map_or(0, u64::from_be_bytes)
    }

    /// The signature of a message's SHA-256: both numbers in a row.
    ///
    /// # Errors
    /// The token is away.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TokenError> {
        let hash = digest(&SHA256, message);
        let signature = self.token.with(|session, start| {
            let key = self.place(session, start)?;
            session.sign(&Mechanism::Ecdsa, key, hash.as_ref())
        })?;
        match signature.len() {
            SIGNATURE_BYTES => Ok(signature),
            other => Err(self.token.problem(&format!("it gave a signature of {other} bytes"))),
        }
    }

    /// Where it is now.
    fn place(&self, session: &Session, start: u64) -> Result<ObjectHandle, Error> {
        let mut held = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, handle)) = *held
            && of == start
        {
            return Ok(handle);
        }
        let template = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Id(self.id.clone()),
        ];
        let found = session.find_objects(&template)?.first().copied();
        let handle = found.ok_or(Error::Pkcs11(
            RvError::KeyHandleInvalid,
            cryptoki::context::Function::FindObjects,
        ))?;
        *held = Some((start, handle));
        Ok(handle)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey")
            .field("token", &self.token.label())
            .finish_non_exhaustive()
    }
}
