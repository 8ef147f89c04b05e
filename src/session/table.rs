//! The session table (to be written).
