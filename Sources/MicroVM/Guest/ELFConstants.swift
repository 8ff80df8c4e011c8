/// The numbers of the ELF-64 object file format that a module is parsed with (System V ABI, chapters 4 and 5; AMD64 ABI
/// supplement, chapters 4 and 5; the GNU extensions as `<elf.h>` names them).
enum ELF {
    static let magic: UInt32 = 0x464c_457f  // 0x7f, E, L, F
    static let class64: UInt8 = 2  // ELFCLASS64
    static let littleEndian: UInt8 = 1  // ELFDATA2LSB
    static let currentVersion: UInt8 = 1  // EV_CURRENT
    static let machineAMD64: UInt16 = 62  // EM_X86_64

    static let headerSize: UInt64 = 64  // sizeof(Elf64_Ehdr)
    static let programHeaderSize: UInt64 = 56  // sizeof(Elf64_Phdr)
    static let sectionHeaderSize: UInt64 = 64  // sizeof(Elf64_Shdr)
    static let dynamicEntrySize: UInt64 = 16  // sizeof(Elf64_Dyn)
    static let symbolSize: UInt64 = 24  // sizeof(Elf64_Sym)
    static let relocationSize: UInt64 = 24  // sizeof(Elf64_Rela)

    /// `e_type`.
    enum FileType {
        static let relocatable: UInt16 = 1  // ET_REL
        static let executable: UInt16 = 2  // ET_EXEC
        static let sharedObject: UInt16 = 3  // ET_DYN
        static let core: UInt16 = 4  // ET_CORE
    }

    /// `p_type`, those that matter here.
    enum SegmentType {
        static let load: UInt32 = 1  // PT_LOAD
        static let dynamic: UInt32 = 2  // PT_DYNAMIC
        static let interpreter: UInt32 = 3  // PT_INTERP
        static let threadLocalStorage: UInt32 = 7  // PT_TLS
        static let note: UInt32 = 4  // PT_NOTE
        static let unwindTable: UInt32 = 0x6474_e550  // PT_GNU_EH_FRAME
        static let stack: UInt32 = 0x6474_e551  // PT_GNU_STACK
        static let readOnlyAfterRelocation: UInt32 = 0x6474_e552  // PT_GNU_RELRO
    }

    /// `p_flags`.
    enum SegmentFlags {
        static let execute: UInt32 = 1  // PF_X
        static let write: UInt32 = 2  // PF_W
        static let read: UInt32 = 4  // PF_R
    }

    /// `sh_type`, those that matter here.
    enum SectionType {
        static let contents: UInt32 = 1  // SHT_PROGBITS
        static let symbols: UInt32 = 2  // SHT_SYMTAB
        static let strings: UInt32 = 3  // SHT_STRTAB
        static let dynamicSymbols: UInt32 = 11  // SHT_DYNSYM
        static let unwindTable: UInt32 = 0x7000_0001  // SHT_X86_64_UNWIND
    }

    /// `d_tag`, those that matter here: every other tag only informs, or belongs to features a module cannot have
    /// without one of these.
    enum DynamicTag: UInt64, Hashable {
        case needed = 1  // DT_NEEDED
        case procedureLinkageSize = 2  // DT_PLTRELSZ
        case hash = 4  // DT_HASH
        case strings = 5  // DT_STRTAB
        case symbols = 6  // DT_SYMTAB
        case relocations = 7  // DT_RELA
        case relocationsSize = 8  // DT_RELASZ
        case relocationSize = 9  // DT_RELAENT
        case stringsSize = 10  // DT_STRSZ
        case symbolSize = 11  // DT_SYMENT
        case initializer = 12  // DT_INIT
        case implicitRelocations = 17  // DT_REL
        case procedureLinkageKind = 20  // DT_PLTREL
        case textRelocations = 22  // DT_TEXTREL
        case procedureLinkage = 23  // DT_JMPREL
        case initializers = 25  // DT_INIT_ARRAY
        case initializersSize = 27  // DT_INIT_ARRAYSZ
        case flags = 30  // DT_FLAGS
        case earlyInitializers = 32  // DT_PREINIT_ARRAY
        case relativeRelocations = 36  // DT_RELR
        case gnuHash = 0x6fff_fef5  // DT_GNU_HASH
        case versions = 0x6fff_fff0  // DT_VERSYM
        case auxiliary = 0x7fff_fffd  // DT_AUXILIARY
        case filter = 0x7fff_ffff  // DT_FILTER

        static let end: UInt64 = 0  // DT_NULL
    }

    static let textRelocationsFlag: UInt64 = 4  // DF_TEXTREL
    static let hiddenVersion: UInt16 = 0x8000  // VERSYM_HIDDEN

    /// The type of a symbol, the low half of `st_info`.
    enum SymbolType {
        static let unspecified: UInt8 = 0  // STT_NOTYPE
        static let object: UInt8 = 1  // STT_OBJECT
        static let function: UInt8 = 2  // STT_FUNC
        static let common: UInt8 = 5  // STT_COMMON
        static let threadLocal: UInt8 = 6  // STT_TLS
        static let indirectFunction: UInt8 = 10  // STT_GNU_IFUNC
    }

    /// The binding of a symbol, the high half of `st_info`.
    enum SymbolBinding {
        static let local: UInt8 = 0  // STB_LOCAL
        static let global: UInt8 = 1  // STB_GLOBAL
        static let weak: UInt8 = 2  // STB_WEAK
        static let unique: UInt8 = 10  // STB_GNU_UNIQUE
    }

    /// The visibility of a symbol, the low two bits of `st_other`.
    enum SymbolVisibility {
        static let `internal`: UInt8 = 1  // STV_INTERNAL
        static let hidden: UInt8 = 2  // STV_HIDDEN
    }

    /// `st_shndx`, the indices with a meaning of their own.
    enum SectionIndex {
        static let undefined: UInt16 = 0  // SHN_UNDEF
        static let absolute: UInt16 = 0xfff1  // SHN_ABS
        static let common: UInt16 = 0xfff2  // SHN_COMMON
    }

    /// The types of relocation a module may hold.
    enum RelocationType {
        static let none: UInt32 = 0  // R_X86_64_NONE
        static let absolute64: UInt32 = 1  // R_X86_64_64
        static let globalData: UInt32 = 6  // R_X86_64_GLOB_DAT
        static let jumpSlot: UInt32 = 7  // R_X86_64_JUMP_SLOT
        static let relative: UInt32 = 8  // R_X86_64_RELATIVE
        static let threadLocalModule: UInt32 = 16  // R_X86_64_DTPMOD64
        static let threadLocalOffset: UInt32 = 17  // R_X86_64_DTPOFF64
        static let threadPointerOffset: UInt32 = 18  // R_X86_64_TPOFF64

        /// What refusals call the types of relocation that linkers are known to emit.
        static func name(of type: UInt32) -> String {
            let known: [UInt32: String] = [
                2: "PC32", 3: "GOT32", 4: "PLT32", 5: "COPY", 9: "GOTPCREL", 10: "32", 11: "32S", 12: "16", 13: "PC16",
                14: "8", 15: "PC8", 19: "TLSGD", 20: "TLSLD", 21: "DTPOFF32", 22: "GOTTPOFF", 23: "TPOFF32",
                24: "PC64", 25: "GOTOFF64", 26: "GOTPC32", 32: "SIZE32", 33: "SIZE64", 34: "GOTPC32_TLSDESC",
                35: "TLSDESC_CALL", 36: "TLSDESC", 37: "IRELATIVE", 38: "RELATIVE64", 41: "GOTPCRELX",
                42: "REX_GOTPCRELX",
                0: "NONE", 1: "64", 6: "GLOB_DAT", 7: "JUMP_SLOT", 8: "RELATIVE", 16: "DTPMOD64", 17: "DTPOFF64",
                18: "TPOFF64",
            ]
            return known[type].map { "R_X86_64_\($0)" } ?? "type \(type)"
        }
    }
}
