module guest

go 1.24

require example.com/filter v0.0.0

replace example.com/filter => ../../../examples/wasm-go
