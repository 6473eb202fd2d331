//! Nothing here: the tests are the targets beside this folder.
