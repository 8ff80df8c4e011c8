// libcap (cap_get_proc(3) and its relatives). On Debian: apt-get install libcap-dev
#if !__has_include(<sys/capability.h>)
#error "libcap is missing: apt-get install libcap-dev, or scripts/setup, or build with --disable-default-traits"
#endif
#include <sys/capability.h>
