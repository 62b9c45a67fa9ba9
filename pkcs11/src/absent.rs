//! What a static program says of tokens: that it cannot load the module of one.

use crate::{Settings, TokenError};

/// A token that nobody has: a static program cannot load its module.
#[derive(Debug, Clone)]
pub enum Token {}

/// A key of such a token.
#[derive(Debug, Clone)]
pub enum TokenKey {}

// === impl Token ===

impl Token {
    /// Says that this program cannot.
    ///
    /// # Errors
    /// Always.
    pub fn open(_: &Settings) -> Result<Self, TokenError> {
        Err(TokenError::Static)
    }

    /// Never called.
    ///
    /// # Errors
    /// Never.
    pub fn keys(&self, _: &str) -> Result<Vec<TokenKey>, TokenError> {
        match *self {}
    }

    /// Never called.
    ///
    /// # Errors
    /// Never.
    pub fn make(&self, _: &str) -> Result<TokenKey, TokenError> {
        match *self {}
    }

    /// Never called.
    ///
    /// # Errors
    /// Never.
    pub fn forget(&self, _: &TokenKey) -> Result<(), TokenError> {
        match *self {}
    }

    /// Never called.
    pub fn away(&self) -> Option<String> {
        match *self {}
    }

    /// Never called.
    pub fn look(&self) {
        match *self {}
    }

    /// Never called.
    pub fn label(&self) -> &str {
        match *self {}
    }
}

// === impl TokenKey ===

impl TokenKey {
    /// Never called.
    pub fn point(&self) -> &[u8] {
        match *self {}
    }

    /// Never called.
    pub fn away(&self) -> Option<String> {
        match *self {}
    }

    /// Never called.
    pub fn made(&self) -> u64 {
        match *self {}
    }

    /// Never called.
    ///
    /// # Errors
    /// Never.
    pub fn sign(&self, _: &[u8]) -> Result<Vec<u8>, TokenError> {
        match *self {}
    }
}
