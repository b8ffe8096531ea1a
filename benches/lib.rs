//! in preparation
