//! A machine that is made up, on which plans are made and carried out, and the rules that hold for every plan.

mod cases;
mod model;
mod properties;
