/* A rectangle of a JPEG: the very pixels that a full decode has there, for less work.
 *
 * Huffman codes have no index, so every row down to the rectangle's last is read. Above and beside it that is
 * all: no inverse DCT, no upsampling, no colours. What lies below is not even read, so damage there does not
 * show; that the bytes are those that were packed is the checksum's business.
 *
 * 0 means "not for me", and the caller decodes in full: progressive and other files of several scans, which
 * have to be read to their end; CMYK; unusual sampling; files without an end; whatever libjpeg warns about.
 * So one code, the caller's, judges what is damaged. A plain C function for ctypes: it knows no Python.
 */

#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "region.c needs libjpeg-turbo 2.1 or later: apt install libjpeg-dev; without it only speed is lost"
#endif

#define MARGIN 2 /* pixels decoded beyond a side: smooth upsampling looks one sample of colour further */

struct rectangle {
  int top, left, height, width;
};

struct errors {
  struct jpeg_error_mgr manager; /* first: libjpeg hands its address back */
  jmp_buf give_up;
};

static void on_error(j_common_ptr info) { longjmp(((struct errors *)info->err)->give_up, 1); }

static void on_message(j_common_ptr info, int level) {
  if (level < 0) on_error(info); /* a warning: damage that libjpeg would paint over */
}

/* Whether simplejpeg takes this file as well, and at the same scale: it has factors of 8ths, and chooses the
 * smallest whose picture is as large as that of 1/factor. */
static int ordinary(j_decompress_ptr info) {
  const jpeg_component_info *part = info->comp_info;
  int sampling = part->h_samp_factor * part->v_samp_factor;
  if (info->arith_code || jpeg_has_multiple_scans(info)) return 0;
  if (info->image_width < DCTSIZE || info->image_height < DCTSIZE) return 0;
  if (info->jpeg_color_space == JCS_GRAYSCALE) return 1;
  if (info->jpeg_color_space != JCS_YCbCr && info->jpeg_color_space != JCS_RGB) return 0;
  for (int i = 1; i < 3; i++)
    if (part[i].h_samp_factor != 1 || part[i].v_samp_factor != 1) return 0;
  return sampling == 1 || sampling == 2 || sampling == 4;
}

static int inside(struct rectangle r, j_decompress_ptr info) {
  return r.top >= 0 && r.height > 0 && (JDIMENSION)r.top + r.height <= info->output_height &&
         r.left >= 0 && r.width > 0 && (JDIMENSION)r.left + r.width <= info->output_width;
}

/* Decode the rows of the rectangle, MARGIN wider than it, and keep what is inside. */
static void read_rows(j_decompress_ptr info, struct rectangle r, unsigned char *out) {
  size_t pixel = info->output_components, row = r.width * pixel;
  JDIMENSION left = r.left > MARGIN ? r.left - MARGIN : 0, right = r.left + r.width + MARGIN;
  JDIMENSION width = (right < info->output_width ? right : info->output_width) - left;
  jpeg_crop_scanline(info, &left, &width); /* moves `left` to a whole block, and widens by as much */
  jpeg_skip_scanlines(info, r.top > MARGIN ? r.top - MARGIN : 0);
  /* One byte off: into aligned rows libjpeg-turbo writes past the cache, and the copy waits for memory. */
  JSAMPROW line = 1 + *info->mem->alloc_sarray((j_common_ptr)info, JPOOL_IMAGE, width * pixel + 1, 1);
  while (info->output_scanline < (JDIMENSION)(r.top + r.height)) {
    int y = (int)info->output_scanline - r.top;
    jpeg_read_scanlines(info, &line, 1);
    if (y >= 0) memcpy(out + y * row, line + (r.left - left) * pixel, row);
  }
}

static int decode(j_decompress_ptr info, const unsigned char *jpeg, size_t bytes, int factor,
                  struct rectangle r, unsigned char *out) {
  jpeg_create_decompress(info);
  jpeg_mem_src(info, jpeg, bytes);
  jpeg_read_header(info, TRUE);
  if (!ordinary(info)) return 0;
  info->out_color_space = info->jpeg_color_space == JCS_GRAYSCALE ? JCS_GRAYSCALE : JCS_RGB;
  info->scale_num = 1;
  info->scale_denom = factor;
  info->dct_method = JDCT_ISLOW;
  jpeg_start_decompress(info);
  if (!inside(r, info)) return 0;
  read_rows(info, r, out);
  return info->output_components;
}

/* Decode a rectangle, in pixels of the picture at 1/factor of its size, into `out`: height x width x channels
 * bytes, with room for 3 channels. Returns how many there are: 1 of gray, 3 of RGB; or 0, see above. */
int decode_region(const unsigned char *jpeg, size_t bytes, int factor, int top, int left, int height,
                  int width, unsigned char *out) {
  struct jpeg_decompress_struct info;
  struct errors errors;
  struct rectangle r = {top, left, height, width};
  volatile int channels = 0; /* as it is in memory, whence longjmp comes back */
  if (bytes < 4 || jpeg[bytes - 2] != 0xFF || jpeg[bytes - 1] != JPEG_EOI) return 0;
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = on_error;
  errors.manager.emit_message = on_message;
  if (!setjmp(errors.give_up)) channels = decode(&info, jpeg, bytes, factor, r, out);
  jpeg_destroy_decompress(&info);
  return channels;
}
