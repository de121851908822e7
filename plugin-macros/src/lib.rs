//! `#[hooks]`, the attribute of `impl Plugin for …`; see the crate `signalbox-plugin`.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{Error, Ident, ImplItem, ItemImpl};

/// The methods that are hooks, and the constant of `Hooks` that says so.
const HOOKS: [(&str, &str); 8] = [
    ("on_request", "REQUEST"),
    ("request_body", "REQUEST_BODY"),
    ("on_request_body", "WHOLE_REQUEST_BODY"),
    ("on_response", "RESPONSE"),
    ("response_body", "RESPONSE_BODY"),
    ("on_response_body", "WHOLE_RESPONSE_BODY"),
    ("on_no_route", "NO_ROUTE"),
    ("on_log", "LOG"),
];

/// Hooks that are called only because of another one.
const NEED: [(&str, &str); 2] = [("on_request_body", "request_body"), ("on_response_body", "response_body")];

/// Says which hooks a plugin has: exactly the methods that its `impl Plugin for …` contains.
///
/// The proxy calls no other, so a hook that is written runs, and one that is not costs nothing.
#[proc_macro_attribute]
pub fn hooks(arguments: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand(&arguments.into(), item.into()).unwrap_or_else(Error::into_compile_error).into()
}

fn expand(arguments: &TokenStream, item: TokenStream) -> Result<TokenStream, Error> {
    if !arguments.is_empty() {
        return Err(Error::new_spanned(arguments, "#[hooks] takes no arguments"));
    }
    let misplaced = || Error::new(Span::call_site(), "#[hooks] belongs above `impl Plugin for …`");
    let mut item: ItemImpl = syn::parse2(item).map_err(|_| misplaced())?;
    let is_plugin = item.trait_.as_ref().and_then(|(path, _)| path.segments.last());
    if is_plugin.is_none_or(|last| last.ident != "Plugin") {
        return Err(misplaced());
    }
    let methods: Vec<&Ident> = item
        .items
        .iter()
        .filter_map(|item| match item {
            ImplItem::Fn(method) => Some(&method.sig.ident),
            _ => None,
        })
        .collect();
    for (hook, needed) in NEED {
        let found = methods.iter().find(|method| **method == hook);
        if let Some(found) = found.filter(|_| !methods.iter().any(|method| *method == needed)) {
            let message =
                format!("`{hook}` is called for the bodies that `{needed}` asks for: write that, too");
            return Err(Error::new(found.span(), message));
        }
    }
    let flags = HOOKS.iter().filter(|(hook, _)| methods.iter().any(|method| method == hook));
    let flags = flags.map(|(_, flag)| Ident::new(flag, Span::call_site()));
    let (generics, _, condition) = item.generics.split_for_impl();
    let this = &item.self_ty;
    let hooked = quote! {
        impl #generics ::signalbox_plugin::Hooked for #this #condition {
            const HOOKS: ::signalbox_plugin::Hooks =
                ::signalbox_plugin::Hooks::NONE #( .with(::signalbox_plugin::Hooks::#flags) )*;
        }
    };
    item.items.push(syn::parse_quote! {
        fn hooks(&self) -> ::signalbox_plugin::Hooks {
            <Self as ::signalbox_plugin::Hooked>::HOOKS
        }
    });
    Ok(quote! { #item #hooked })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(source: TokenStream) -> String {
        match expand(&TokenStream::new(), source) {
            Ok(tokens) => tokens.to_string().replace(' ', ""),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_methods_of_the_impl_are_the_hooks() {
        let text = expanded(quote! {
            impl<T: Send> signalbox_plugin::Plugin for Twice<T> where T: Sync {
                fn on_request<'a>(&'a self, _: &'a mut PluginRequest<'_>) -> Flow<'a> { Flow::Continue }
                fn on_response(&self, _: &mut PluginResponse<'_>) {}
                fn uses_consumer_headers(&self) -> bool { false }
            }
        });
        assert!(text.contains("Hooks::NONE.with(::signalbox_plugin::Hooks::REQUEST).with(::signalbox_plugin::Hooks::RESPONSE);"), "{text}");
        assert!(text.contains("impl<T:Send>::signalbox_plugin::HookedforTwice<T>whereT:Sync"), "{text}");
    }

    #[test]
    fn a_misplaced_attribute_is_refused() {
        for source in [
            quote!(impl Twice {}),
            quote!(impl Definition for Twice {}),
            quote!(
                struct Twice;
            ),
        ] {
            assert!(expanded(source.clone()).contains("belongs above `impl Plugin for"), "{source}");
        }
        let error = expand(&quote!(on_request), quote!(impl Plugin for Twice {})).unwrap_err();
        assert_eq!(error.to_string(), "#[hooks] takes no arguments");
    }

    #[test]
    fn a_hook_that_would_never_be_called_is_refused() {
        let text = expanded(quote! {
            impl Plugin for Twice {
                fn on_request_body<'a>(&'a self, _: &'a mut PluginRequest<'_>, _: &'a mut Bytes) -> Flow<'a> {
                    Flow::Continue
                }
            }
        });
        assert!(text.contains("bodies that `request_body` asks for"), "{text}");
    }
}
