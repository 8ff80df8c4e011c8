// libseccomp (seccomp_init(3) and its relatives). On Debian: apt-get install libseccomp-dev
#if !__has_include(<seccomp.h>)
#error "libseccomp is missing: apt-get install libseccomp-dev, or scripts/setup, or build with --disable-default-traits"
#endif
#include <seccomp.h>
